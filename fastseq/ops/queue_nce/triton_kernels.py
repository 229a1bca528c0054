"""The Triton kernels of queue_nce; README.md in this folder derives the formulas.

The scan is split over the queue as well as over the queries, or 32 queries would keep one
multiprocessor busy. Each part leaves its maximum, its sum and its weighted sum of rows; the loss
kernel joins them, one query a program. No atomics: the same bits every time. All exponents and
logarithms are base 2.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames

LN2 = tl.constexpr(0.6931471805599453)
NORM_EPS = tl.constexpr(1e-12)
# Exponentials of at most 1 on their way through fp16: what underflows is then below a rounding.
FP16_SCALE = tl.constexpr(32768.0)


@triton.jit
def vector(p_z, D: tl.constexpr, BD: tl.constexpr):
    """One embedding in fp32, zero beyond its channels."""
    o_d = tl.arange(0, BD)
    return tl.load(p_z + o_d, mask=o_d < D, other=0.0).to(tl.float32)


@triton.jit
def inverse_norm(b_sq, NORM: tl.constexpr):
    f = tl.full(b_sq.shape, 1.0, tl.float32)
    if NORM:
        # Comparisons, not a maximum: NaN stays.
        b_norm = tl.sqrt(b_sq)
        f = 1.0 / tl.where(b_norm < NORM_EPS, NORM_EPS, b_norm)
    return f


@triton.jit(do_not_specialize=["N", "K", "splits", "span"])
def queue_nce_scan_kernel(
    p_q,  # [N, D]
    p_c,  # [K, D], in a type of its own
    p_max,  # [N, splits]
    p_sum,  # [N, splits]
    p_acc,  # [N, splits, D]
    N,
    K,
    splits,
    span,  # rows of the queue per split
    scale,  # log2(e) / temperature
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    KIND: tl.constexpr = p_q.dtype.element_ty
    CHUNKS: tl.constexpr = (D + BD - 1) // BD if KEEP else 1
    FACTOR: tl.constexpr = FP16_SCALE if tl.float16 == KIND else 1.0
    # Neighbours share a part of the queue.
    blocks = tl.cdiv(N, BM)
    o_m = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    m_m = o_m < N
    i_s = tl.program_id(0) // blocks // CHUNKS
    chunk = tl.program_id(0) // blocks % CHUNKS * BD

    b_qa = frames(p_q, o_m, m_m, 0, D, BK)  # [BM, BK]
    b_f = tl.zeros([BM], tl.float32) + scale
    if NORM:
        b_sq = tl.sum(b_qa.to(tl.float32) * b_qa.to(tl.float32), 1)
        for k in range(BK, D, BK):
            b_qk = frames(p_q, o_m, m_m, k, D, BK).to(tl.float32)
            b_sq += tl.sum(b_qk * b_qk, 1)
        b_f *= inverse_norm(b_sq, NORM)

    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, BD], tl.float32)
    stop = tl.minimum((i_s + 1) * span, K)
    for j in range(i_s * span, stop, BN):
        o_n = j + tl.arange(0, BN)
        m_n = o_n < stop
        b_c = frames(p_c, o_n, m_n, 0, D, BK).to(KIND)  # [BN, BK]
        b_x = dot(b_qa, tl.trans(b_c), tl.zeros([BM, BN], tl.float32), PREC)
        for k in range(BK, D, BK):
            b_ck = frames(p_c, o_n, m_n, k, D, BK).to(KIND)
            b_x = dot(frames(p_q, o_m, m_m, k, D, BK), tl.trans(b_ck), b_x, PREC)
        b_x = tl.where(m_n[None, :], b_x * b_f[:, None], float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_e = tl.exp2(b_x - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_e, 1)
        b_max = b_new
        if KEEP:
            if BK < D or BK != BD:
                b_c = frames(p_c, o_n, m_n, chunk, D, BD).to(KIND)
            b_acc = dot((b_e * FACTOR).to(KIND), b_c, b_acc * b_shrink[:, None], PREC)

    o_part = o_m.to(tl.int64) * splits + i_s
    if chunk == 0:
        tl.store(p_max + o_part, b_max, mask=m_m)
        tl.store(p_sum + o_part, b_sum, mask=m_m)
    if KEEP:
        o_d = chunk + tl.arange(0, BD)
        p_out = p_acc + o_part[:, None] * D + o_d[None, :]
        tl.store(p_out, b_acc * (1.0 / FACTOR), mask=m_m[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["P", "splits"])
def queue_nce_loss_kernel(
    p_q,
    p_pos,  # [N, P, D]
    p_max,
    p_sum,
    p_acc,
    p_loss,  # [N, P]
    p_lack,  # [N, P]: 1 - the probability of the positive
    p_mean,  # [N, D]
    P,
    splits,
    scale,
    D: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    i_n = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, BS)
    m_s = o_s < splits
    b_max = tl.load(p_max + i_n * splits + o_s, mask=m_s, other=float("-inf"))
    top = tl.max(b_max, 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # an empty queue
    b_w = tl.exp2(b_max - top)
    total = tl.sum(b_w * tl.load(p_sum + i_n * splits + o_s, mask=m_s, other=0.0), 0)
    lse = top + tl.log2(total)
    if KEEP:
        share = tl.where(total == 0.0, 0.0, 1.0 / total)
        for k in range(0, D, BC):
            o_k = k + tl.arange(0, BC)
            p_part = p_acc + (i_n * splits + o_s)[:, None] * D + o_k[None, :]
            m_part = m_s[:, None] & (o_k < D)[None, :]
            b_part = tl.load(p_part, mask=m_part, other=0.0)  # [BS, BC]
            b_mean = tl.sum(b_part * b_w[:, None], 0) * share
            tl.store(p_mean + i_n * D + o_k, b_mean, mask=o_k < D)

    b_q = vector(p_q + i_n * D, D, BD)
    b_q *= inverse_norm(tl.sum(b_q * b_q, 0), NORM)
    for p in range(0, P):
        i_p = i_n * P + p
        b_v = vector(p_pos + i_p * D, D, BD)
        f = inverse_norm(tl.sum(b_v * b_v, 0), NORM)
        gap = lse - tl.sum(b_q * b_v, 0) * f * scale
        # log(1 + e) that keeps the digits of a small e.
        e = tl.exp2(-tl.abs(gap))
        d = (1.0 + e) - 1.0
        log = tl.where(d == 0.0, e, tl.log(1.0 + e) * (e / tl.where(d == 0.0, 1.0, d)))
        tl.store(p_loss + i_p, tl.where(gap < 0.0, 0.0, gap * LN2) + log)
        tl.store(p_lack + i_p, 1.0 / (1.0 + tl.exp2(-gap)))


@triton.jit(do_not_specialize=["P", "sgn", "sgp"])
def queue_nce_grad_kernel(
    p_q,
    p_pos,
    p_lack,
    p_mean,
    p_grad,  # gradient of the losses [N, P], with strides sgn and sgp
    p_dq,  # [N, D] or None
    p_dpos,  # [N, P, D] or None
    P,
    sgn,
    sgp,
    rate,  # 1 / temperature
    D: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
):
    rate = tl.cast(rate, tl.float32)
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_u = vector(p_q + i_n * D, D, BD)
    sq_q = tl.sum(b_u * b_u, 0)
    f_q = inverse_norm(sq_q, NORM)
    b_u *= f_q
    b_pull = tl.zeros([BD], tl.float32)
    total = 0.0
    for p in range(0, P):
        i_p = i_n * P + p
        w = tl.load(p_grad + i_n * sgn + p * sgp) * tl.load(p_lack + i_p) * rate
        b_v = vector(p_pos + i_p * D, D, BD)
        sq = tl.sum(b_v * b_v, 0)
        f = inverse_norm(sq, NORM)
        b_v *= f
        total += w
        b_pull += w * b_v
        if p_dpos is not None:
            b_d = through_norm(-w * b_u, b_v, sq, f, NORM)
            tl.store(p_dpos + i_p * D + o_d, b_d.to(p_dpos.dtype.element_ty), mask=m_d)
    if p_dq is not None:
        b_d = total * vector(p_mean + i_n * D, D, BD) - b_pull
        b_d = through_norm(b_d, b_u, sq_q, f_q, NORM)
        tl.store(p_dq + i_n * D + o_d, b_d.to(p_dq.dtype.element_ty), mask=m_d)


@triton.jit
def through_norm(b_d, b_unit, sq, f, NORM: tl.constexpr):
    """The gradient of what was divided by its norm, of which ``f`` is the inverse."""
    if NORM:
        # Where the norm was clamped it is a constant.
        along = tl.where(tl.sqrt(sq) < NORM_EPS, 0.0, tl.sum(b_d * b_unit, 0))
        b_d = (b_d - along * b_unit) * f
    return b_d
