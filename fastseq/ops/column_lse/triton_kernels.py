"""The Triton kernels of column_lse. Exponents and logarithms are base 2.

A program has a block of frames of one side and loops over all real frames of the other side, so
every sum has a fixed order and there are no atomics.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def real(p_len, i_n, T):
    """Number of real frames of sequence i_n: its length clamped to [0, T]."""
    n = T
    if p_len is not None:
        n = tl.minimum(tl.maximum(tl.load(p_len + i_n).to(tl.int64), 0), T).to(tl.int32)
    return n


@triton.jit
def matches(
    p_a,
    o_a,
    m_a,
    p_b,
    o_b,
    m_b,
    D: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """<a, b> - 1 of the frames o_a and o_b, -inf where b is absent: the exponents before they are
    multiplied by the rate, which a subtraction after it makes one fused operation."""
    b_s = tl.zeros([o_a.shape[0], o_b.shape[0]], tl.float32)
    for k in range(0, D, BK):
        b_a = frames(p_a, o_a, m_a, k, D, BK)
        b_b = frames(p_b, o_b, m_b, k, D, BK)
        b_s = dot(b_a, tl.trans(b_b), b_s, PREC)
    return tl.where(m_b[None, :], b_s - 1.0, float("-inf"))


@triton.jit(do_not_specialize=["T", "S"])
def column_lse_value_kernel(
    p_x,  # [N, T, D]
    p_y,  # [N, S, D]
    p_lx,  # [N] or None
    p_ly,
    p_value,  # [N, S], natural logarithm
    p_lse,  # [N, S], base 2
    T,
    S,
    rate,  # log2(e) / temperature
    D: tl.constexpr,
    BM: tl.constexpr,  # columns of a program
    BN: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    blocks = tl.cdiv(S, BM)
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    o_j = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    n = real(p_lx, i_n, T)
    m_j = o_j < real(p_ly, i_n, S)
    p_x += i_n * T * D
    p_y += i_n * S * D
    b_sum = tl.zeros([BM], tl.float32)
    b_max = tl.full([BM], float("-inf") if SHIFTED else 0.0, tl.float32)
    for i in range(0, n, BN):
        o_i = i + tl.arange(0, BN)
        b_s = matches(p_y, o_j, m_j, p_x, o_i, o_i < n, D, BK, PREC)
        if SHIFTED:
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * rate)
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s * rate - b_new[:, None]), 1)
            b_max = b_new
        else:
            b_sum += tl.sum(tl.exp2(b_s * rate), 1)
    b_lse = tl.where(m_j & (n > 0), b_max + tl.log2(b_sum), 0.0)
    tl.store(p_lse + i_n * S + o_j, b_lse, mask=o_j < S)
    tl.store(p_value + i_n * S + o_j, b_lse * LN2, mask=o_j < S)


@triton.jit(do_not_specialize=["A", "B", "S", "sgn", "sgs"])
def column_lse_grad_kernel(
    p_a,  # [N, A, D]: the side whose gradient this is
    p_b,  # [N, B, D]
    p_la,
    p_lb,
    p_lse,  # [N, S]
    p_grad,  # gradient of the value [N, S], with strides sgn and sgs
    p_da,  # [N, A, D]
    A,
    B,
    S,
    sgn,
    sgs,
    rate,  # log2(e) / temperature
    inverse,  # 1 / temperature
    D: tl.constexpr,
    BM: tl.constexpr,  # frames of a in a program
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,  # channels of a program
    PREC: tl.constexpr,
    COLUMNS: tl.constexpr,  # a is y, whose frames are the columns
):
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    blocks = tl.cdiv(A, BM)
    k = tl.program_id(0) % CHUNKS * BD
    block = tl.program_id(0) // CHUNKS
    i_n = (block // blocks).to(tl.int64)
    o_a = block % blocks * BM + tl.arange(0, BM)
    m_a = o_a < real(p_la, i_n, A)
    n = real(p_lb, i_n, B)
    p_a += i_n * A * D
    p_b += i_n * B * D
    p_lse += i_n * S
    p_grad += i_n * sgn
    b_acc = tl.zeros([BM, BD], tl.float32)
    if COLUMNS:
        b_lse = tl.load(p_lse + o_a, mask=m_a, other=0.0)
    for b in range(0, n, BN):
        o_b = b + tl.arange(0, BN)
        m_b = o_b < n
        b_s = matches(p_a, o_a, m_a, p_b, o_b, m_b, D, BK, PREC)
        if COLUMNS:
            b_w = tl.exp2(b_s * rate - b_lse[:, None])
        else:
            b_l = tl.load(p_lse + o_b, mask=m_b, other=0.0)
            b_g = tl.load(p_grad + o_b * sgs, mask=m_b, other=0.0)
            b_w = tl.exp2(b_s * rate - b_l[None, :]) * b_g[None, :]
        b_acc = dot(b_w, frames(p_b, o_b, m_b, k, D, BD), b_acc, PREC)
    b_acc *= inverse
    if COLUMNS:
        b_acc *= tl.load(p_grad + o_a * sgs, mask=m_a, other=0.0)[:, None]
    o_k = k + tl.arange(0, BD)
    p_to = p_da + (i_n * A + o_a)[:, None] * D + o_k[None, :]
    b_acc = tl.where(m_a[:, None], b_acc, 0.0)
    tl.store(p_to, b_acc, mask=(o_a < A)[:, None] & (o_k < D)[None, :])
