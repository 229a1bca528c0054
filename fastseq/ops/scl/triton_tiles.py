"""What the Triton kernels of scl_loss share: one side of a sequence, one tile of a pair.

Suffixes: a is the side whose frames are rows, c the side whose frames are columns.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, fma, frames

# A sum of targets below this needs exponents relative to itself; below FARTHEST it may have lost
# some of them, and BEYOND makes a normal number of any within reach (2^-149 at least).
FAR = tl.constexpr(2.0**-16)
FARTHEST = tl.constexpr(2.0**-100)
BEYOND = tl.constexpr(98.0)
# Frames that share one earliest and one latest time.
UNIT = tl.constexpr(32)
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
    return since(tl.load(p_t + o_t, mask=m_t, other=0), ref)


@triton.jit
def since(b_t, ref):
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
def near_range(p_lo, p_hi, columns, ref, lo, hi, reach):
    """Columns of the other view within reach of the times [lo, hi], in units of UNIT: from, to.

    Sorted times make that exactly the units that matter, others a superset. p_lo and p_hi: earliest
    and latest time of each unit, the wrong way round where none of its frames is real.
    """
    GROUP: tl.constexpr = 256
    units = tl.cdiv(columns, UNIT)
    b_first = tl.full([GROUP], 0, tl.int32) + units
    b_end = tl.zeros([GROUP], tl.int32)
    for u in range(0, units, GROUP):
        o_u = u + tl.arange(0, GROUP)
        m_u = o_u < units
        b_lo = tl.load(p_lo + o_u, mask=m_u, other=0)
        b_hi = tl.load(p_hi + o_u, mask=m_u, other=0)
        m_u = m_u & (b_lo <= b_hi)
        m_u = m_u & (since(b_lo, ref) - hi <= reach) & (lo - since(b_hi, ref) <= reach)
        b_first = tl.minimum(b_first, tl.where(m_u, o_u, units))
        b_end = tl.maximum(b_end, tl.where(m_u, o_u + 1, 0))
    return tl.min(b_first, 0), tl.max(b_end, 0)


@triton.jit
def tiles_of(first, end, columns, BN: tl.constexpr):
    """How a program walks over the columns in tiles: those that take care, then the plain ones.

    Care is for what lies within reach and for the last tile where columns do not fill it. Gives
    the first of them, how many lie within reach, how many there are with the last one, how many
    plain ones follow, and how many of those within reach they have to leave out.
    """
    full = columns // BN
    tiles = tl.cdiv(columns, BN)
    first = tl.minimum(first * UNIT // BN, tiles)
    end = tl.minimum(tl.cdiv(end * UNIT, BN), tiles)
    near = tl.maximum(end - first, 0)
    careful = near + tl.where((tiles > full) & ((end < tiles) | (near == 0)), 1, 0)
    inside = tl.maximum(tl.minimum(end, full) - first, 0)
    return first, near, careful, full - inside, inside


@triton.jit
def exponents(b_d, gauss, reach):
    """Base 2, of 2^32 exp(-d^2 / (2 variance)) within reach; exp2 is 0 of all others.

    Each of the former is a normal fp32 number. A multiply-add, so that it is rounded once, and the
    same way in both kernels: a row's targets then add up to 1 in the gradient too.
    """
    return tl.where(tl.abs(b_d) <= reach, fma(b_d * b_d, gauss * -1.0, 32.0), -300.0)


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
def clock(p_t1, p_t2, p_bounds, st1, st2, i_n, i_d, o_m, m_m, N, T1, T2):
    """Times of a row block relative to its first real one, their range, and where the other view
    has its times and their bounds."""
    p_ta, p_tc = ordered(p_t1 + i_n * st1, p_t2 + i_n * st2, i_d)
    T_a, _ = ordered(T1, T2, i_d)
    units_1 = tl.cdiv(T1, UNIT)
    units = units_1 + tl.cdiv(T2, UNIT)
    p_lo = p_bounds + i_n * units + tl.where(i_d == 0, units_1, 0)
    ref = first_time(p_ta, o_m, m_m, T_a)
    b_t = times(p_ta, o_m, m_m, ref)
    lo = tl.min(tl.where(m_m, b_t, float("inf")), 0)
    hi = tl.max(tl.where(m_m, b_t, float("-inf")), 0)
    return p_tc, p_lo, p_lo + tl.cast(N, tl.int64) * units, ref, b_t, lo, hi


@triton.jit
def near_indices(row, columns, reach, BM: tl.constexpr):
    """near_range where time is the frame index."""
    gap = tl.minimum(reach, 1e9).to(tl.int32)
    units = tl.cdiv(columns, UNIT)
    first = tl.minimum(tl.maximum(row - gap, 0) // UNIT, units)
    end = tl.minimum((row + BM - 1 + gap) // UNIT + 1, units)
    return first, end


@triton.jit
def tile_index(k, first, near, last, inside, CAREFUL: tl.constexpr):
    """The k-th tile that takes care, or the k-th of all others."""
    j = tl.where(k < near, first + k, last) if CAREFUL else k + tl.where(k >= first, inside, 0)
    return j


@triton.jit
def partial_sums(b_x):
    """Of each row of a tile, as [rows, 8]: what a thread holds of tensor cores' results, so that
    nothing crosses threads before the end. Add up the rest once."""
    ROWS: tl.constexpr = b_x.shape[0]
    return tl.sum(tl.reshape(b_x, [ROWS, b_x.shape[1] // 8, 8]), 1)


@triton.jit
def inverse_norm(b_sq):
    """1 / norm, which is never 0: that stands for frames that are not real."""
    b_f = 1.0 / tl.maximum(tl.sqrt(b_sq), NORM_EPS)
    return tl.where(b_f == 0, 1e-38, b_f)


@triton.jit
def two_partial_sums(b_x, b_y):
    """partial_sums of both at once: then both are computed in the layout of the first."""
    ROWS: tl.constexpr = b_x.shape[0]
    b_xy = tl.reshape(tl.join(b_x, b_y), [ROWS, b_x.shape[1] // 8, 8, 2])
    return tl.split(tl.sum(b_xy, 1))


@triton.jit
def denominators(b_e, b_max, b_r, ONLINE: tl.constexpr):
    """Largest exponents so far, what sums are relative to, and sums of exponentials with a tile."""
    b_shift = b_max
    if ONLINE:
        b_new = tl.maximum(b_max, tl.max(b_e, 1))
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_r *= tl.exp2(b_max - b_shift)[:, None]
        b_r += partial_sums(tl.exp2(b_e - b_shift[:, None]))
        b_max = b_new
    else:
        b_r += partial_sums(tl.exp2(b_e))
    return b_max, b_shift, b_r


@triton.jit
def with_more(p_more, stride, m_m, b_max, b_r, ONLINE: tl.constexpr):
    """Largest exponents and sums of exponentials with those of columns summed elsewhere."""
    b_more = tl.load(p_more, mask=m_m, other=0.0)
    if ONLINE:
        b_top = tl.load(p_more + stride, mask=m_m, other=float("-inf"))
        b_new = tl.maximum(b_max, b_top)
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_r = b_r * tl.exp2(b_max - b_shift) + b_more * tl.exp2(b_top - b_shift)
        b_max = b_new
    else:
        b_r += b_more
    return b_max, b_r


@triton.jit
def products(
    p_a,
    p_c,
    b_za,
    o_m,
    m_m,
    j,
    m_n,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    MASKED: tl.constexpr,
    PREC: tl.constexpr,
):
    """<row, column> of the j-th tile of columns, BK channels at a time; its first channels."""
    b_zc = columns(p_c, j, m_n, 0, D, BN, BK, MASKED)  # [BN, BK]
    b_s = dot(b_za, tl.trans(b_zc), tl.zeros([BM, BN], tl.float32), PREC)
    for k in range(BK, D, BK):
        b_zk = columns(p_c, j, m_n, k, D, BN, BK, MASKED)
        b_s = dot(frames(p_a, o_m, m_m, k, D, BK), tl.trans(b_zk), b_s, PREC)
    return b_s, b_zc


@triton.jit
def columns(
    p_c, j, m_n, k, D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, MASKED: tl.constexpr
):
    """Channels k to k + BK of the frames of the j-th tile, zero where MASKED and not real.

    Offsets within a tile are the same for all, and 32 bits wide."""
    o_k = k + tl.arange(0, BK)[None, :]
    p_tile = p_c + tl.cast(j, tl.int64) * (BN * D) + (tl.arange(0, BN)[:, None] * D + o_k)
    if MASKED and D % BK != 0:
        b_z = tl.load(p_tile, mask=m_n[:, None] & (o_k < D), other=0.0)
    elif MASKED:
        b_z = tl.load(p_tile, mask=m_n[:, None], other=0.0)
    elif D % BK != 0:
        b_z = tl.load(p_tile, mask=o_k < D, other=0.0)
    else:
        b_z = tl.load(p_tile)
    return b_z


@triton.jit
def of_columns(p_x, j, m_n, other, BN: tl.constexpr, MASKED: tl.constexpr):
    """A value of each frame of the j-th tile."""
    p_tile = p_x + tl.cast(j, tl.int64) * BN + tl.arange(0, BN)
    b_x = tl.load(p_tile, mask=m_n, other=other) if MASKED else tl.load(p_tile)
    return b_x


@triton.jit
def add_product(b_xh, b_xm, b_xl, b_yh, b_ym, b_yl, b_acc, PLANES: tl.constexpr):
    """The product of numbers given as sums of bf16, without what is below their last bit.

    From 0 and the smallest on, with an addition in fp32 at the end: tensor cores are said to cut
    off what they add up, which then happens in few steps. The factor keeps the compiler from making
    that one product with all that came before.
    """
    b_xy = tl.zeros(b_acc.shape, tl.float32)
    if PLANES == 3:
        b_xy = dot(b_xl, b_yh, b_xy, "tf32")
        b_xy = dot(b_xh, b_yl, b_xy, "tf32")
        b_xy = dot(b_xm, b_ym, b_xy, "tf32")
    b_xy = dot(b_xm, b_yh, b_xy, "tf32")
    b_xy = dot(b_xh, b_ym, b_xy, "tf32")
    b_xy = dot(b_xh, b_yh, b_xy, "tf32")
    return tl.fma(b_xy, 1.0, b_acc)


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
