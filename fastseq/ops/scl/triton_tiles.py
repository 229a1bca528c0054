"""What the Triton kernels of scl_loss share: one side of a sequence, one tile of a pair.

Suffixes: a is the side whose frames are rows, c the side whose frames are columns.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames

# Weights are 2^32 times the Gaussian: each of them within reach is then a normal fp32 number.
ROOT_WEIGHT = tl.constexpr(65536.0)
LN2 = tl.constexpr(0.6931471805599453)
NORM_EPS = tl.constexpr(1e-12)
# 1 / norm of a frame whose norm was clamped to NORM_EPS lies above, every other one below.
CLAMPED = tl.constexpr(0.999e12)
# p - w of a frame is far below fp16's smallest normal number once T is large.
FP16_SCALE = tl.constexpr(8192.0)


@triton.jit
def length(p_v, i_n, T):
    """Frames of sequence i_n: its length clamped to [0, T]."""
    return tl.minimum(tl.maximum(tl.load(p_v + i_n).to(tl.int64), 0), T).to(tl.int32)


@triton.jit
def valid(p_v, o_t, n_t, MASK: tl.constexpr):
    """Which of the frames o_t are real; n_t bounds them, p_v is the sequence's row of the mask."""
    m_t = o_t < n_t
    if MASK:
        m_t = m_t & (tl.load(p_v + o_t, mask=m_t, other=0) != 0)
    return m_t


@triton.jit
def times(p_t, o_t, m_t, ref):
    """Times relative to ref, subtracted before they become fp32: large offsets stay exact."""
    b_t = tl.load(p_t + o_t, mask=m_t, other=0)
    if b_t.dtype == tl.int32:
        b_t = b_t.to(tl.float64)  # holds every difference
    return (b_t - ref).to(tl.float32)


@triton.jit
def first_time(p_t, o_t, m_t, T):
    """Time of the first real frame of a tile."""
    first = tl.min(tl.where(m_t, o_t, T - 1), 0)
    ref = tl.load(p_t + first, mask=first >= 0, other=0)  # T may be 0
    if ref.dtype == tl.int32:
        ref = ref.to(tl.float64)
    return ref


@triton.jit
def near_range(p_t, p_v, n_t, tiles, ref, lo, hi, reach, BN: tl.constexpr, MASK: tl.constexpr):
    """First tile of the other view within reach of the times [lo, hi], and how many up to the last.

    Sorted times make that exactly the tiles that matter, others a superset.
    """
    GROUP: tl.constexpr = 512 // BN
    first = tiles
    end = 0
    for j in range(0, tiles, GROUP):
        o_k = j + tl.arange(0, GROUP)
        o_t = o_k[:, None] * BN + tl.arange(0, BN)[None, :]  # [GROUP, BN]
        m_t = valid(p_v, o_t, n_t, MASK)
        b_t = times(p_t, o_t, m_t, ref)
        b_lo = tl.min(tl.where(m_t, b_t, float("inf")), 1)  # [GROUP]
        b_hi = tl.max(tl.where(m_t, b_t, float("-inf")), 1)
        m_near = (b_lo - hi <= reach) & (lo - b_hi <= reach)
        first = tl.minimum(first, tl.min(tl.where(m_near, o_k, tiles), 0))
        end = tl.maximum(end, tl.max(tl.where(m_near, o_k + 1, 0), 0))
    return first, tl.maximum(end - first, 0)


@triton.jit
def weights(b_d, gauss, reach):
    """2^32 exp(-d^2 / (2 variance)) within reach, else 0."""
    b_root = tl.exp2(-gauss * b_d * b_d) * ROOT_WEIGHT
    return tl.where(tl.abs(b_d) <= reach, b_root * b_root, 0.0)


@triton.jit
def ordered(p_1, p_2, i_d):
    """(own, other) of a pair given as (view 1, view 2)."""
    if i_d == 0:
        p_a = p_1
        p_c = p_2
    else:
        p_a = p_2
        p_c = p_1
    return p_a, p_c


@triton.jit
def sides(p_z1, p_z2, p_v1, p_v2, i_n, i_d, T1, T2, D: tl.constexpr, MASK: tl.constexpr):
    """Rows' (a) and columns' (c) side of sequence i_n: frames, embeddings, bound, mask."""
    T_a, T_c = ordered(T1, T2, i_d)
    p_a, p_c = ordered(p_z1, p_z2, i_d)
    p_a += i_n * T_a * D
    p_c += i_n * T_c * D
    n_1 = T1
    n_2 = T2
    p_va = p_a  # a helper cannot return None; read with MASK alone
    p_vc = p_c
    if MASK:
        p_va, p_vc = ordered(p_v1, p_v2, i_d)
        p_va += i_n * T_a
        p_vc += i_n * T_c
    else:
        if p_v1 is not None:
            n_1 = length(p_v1, i_n, T1)
        if p_v2 is not None:
            n_2 = length(p_v2, i_n, T2)
    n_a, n_c = ordered(n_1, n_2, i_d)
    return T_a, p_a, p_c, n_a, n_c, p_va, p_vc


@triton.jit
def clock(p_t1, p_t2, st1, st2, i_n, i_d, o_m, m_m, T_a):
    """Times of a row block relative to its first real one, their range, and where to go on."""
    p_ta, p_tc = ordered(p_t1 + i_n * st1, p_t2 + i_n * st2, i_d)
    ref = first_time(p_ta, o_m, m_m, T_a)
    b_t = times(p_ta, o_m, m_m, ref)
    lo = tl.min(tl.where(m_m, b_t, float("inf")), 0)
    hi = tl.max(tl.where(m_m, b_t, float("-inf")), 0)
    return p_tc, ref, b_t, lo, hi


@triton.jit
def near_indices(row, tiles, reach, BM: tl.constexpr, BN: tl.constexpr):
    """near_range where time is the frame index."""
    gap = tl.minimum(reach, 1e9).to(tl.int32)
    first = tl.minimum(tl.maximum(row - gap, 0) // BN, tiles)
    end = tl.minimum((row + BM - 1 + gap) // BN + 1, tiles)
    return first, end - first


@triton.jit
def tile_index(k, first, near, OUTSIDE: tl.constexpr):
    """The k-th tile within reach, or the k-th of all others."""
    j = first + k
    if OUTSIDE:
        j = k + tl.where(k >= first, near, 0)
    return j


@triton.jit
def inverse_norm(b_sq):
    return 1.0 / tl.maximum(tl.sqrt(b_sq), NORM_EPS)


@triton.jit
def row_norms(p_z, b_z, o_t, m_t, D: tl.constexpr, BK: tl.constexpr):
    """1 / norm of frames whose first BK channels are loaded."""
    b_sq = tl.sum(b_z.to(tl.float32) * b_z.to(tl.float32), 1)
    for k in range(BK, D, BK):
        b_zk = frames(p_z, o_t, m_t, k, D, BK).to(tl.float32)
        b_sq += tl.sum(b_zk * b_zk, 1)
    return inverse_norm(b_sq)


@triton.jit
def products(
    p_a,
    p_c,
    b_za,
    o_m,
    m_m,
    o_n,
    m_n,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    NORM: tl.constexpr,
    PREC: tl.constexpr,
):
    """<row, column> of a tile, BK channels at a time; the columns' 1 / norm and first channels."""
    b_zc = frames(p_c, o_n, m_n, 0, D, BK)  # [BN, BK]
    b_s = dot(b_za, tl.trans(b_zc), tl.zeros([BM, BN], tl.float32), PREC)
    b_fc = tl.full([BN], 1.0, tl.float32)
    if NORM:
        b_sq = tl.sum(b_zc.to(tl.float32) * b_zc.to(tl.float32), 1)
    for k in range(BK, D, BK):
        b_zk = frames(p_c, o_n, m_n, k, D, BK)
        b_s = dot(frames(p_a, o_m, m_m, k, D, BK), tl.trans(b_zk), b_s, PREC)
        if NORM:
            b_sq += tl.sum(b_zk.to(tl.float32) * b_zk.to(tl.float32), 1)
    if NORM:
        b_fc = inverse_norm(b_sq)
    return b_s, b_fc, b_zc


@triton.jit
def block_sums(p_part, i_d, o_v, m_v, N, blocks, BV: tl.constexpr, BB: tl.constexpr):
    """Losses and real rows of the sequences o_v in one direction, added up over the blocks."""
    b_loss = tl.zeros([BV, BB], tl.float32)
    b_rows = tl.zeros([BV, BB], tl.float32)
    p_v = p_part + (i_d * N + o_v).to(tl.int64)[:, None] * blocks  # [BV, 1]
    for b in range(0, blocks, BB):
        o_b = b + tl.arange(0, BB)[None, :]
        m_b = m_v[:, None] & (o_b < blocks)
        b_loss += tl.load(p_v + o_b, mask=m_b, other=0.0)
        b_rows += tl.load(p_v + 2 * tl.cast(N, tl.int64) * blocks + o_b, mask=m_b, other=0.0)
    return tl.sum(b_loss, 1), tl.sum(b_rows, 1)
