"""Tile functions of scl_loss's Triton kernels: one side of a sequence, one tile of a pair.

Suffixes: a is the side whose frames are rows, c the side whose frames are columns.

p_stats, the kept statistics, has rows [N, padded(T1) + padded(T2)]. Each view is padded to whole
units of UNIT frames, so that tiles of columns are read without masks. Row RECORD stores numbers of
a unit in the places of its first frames: its earliest time as three fp32 numbers that add up to
it, then the entries SPAN, LARGEST and WITHIN. Row TIME is relative to the earliest time:
differences of int64 and fp64 times stay exact, and the kernels are the same for all types of times.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, fma

UNIT = tl.constexpr(64)
# Rows of p_stats: 1/R, 1/N, 1/norm times the root of the scale, ...
R, TARGETS, FACTOR, TIME, RECORD, MAXIMUM = (tl.constexpr(k) for k in range(6))
SPAN = tl.constexpr(3)  # from the earliest to the latest time; negative without a real frame
LARGEST = tl.constexpr(4)  # largest factor, except those of clamped norms
WITHIN = tl.constexpr(8)  # the other view's units within reach, for each QUARTER
QUARTER = tl.constexpr(16)
# A sum of targets below this needs exponents relative to its largest; below FARTHEST some targets
# may have been lost, and BEYOND makes any target within reach a normal number (2^-149 at least).
FAR = tl.constexpr(2.0**-16)
FARTHEST = tl.constexpr(2.0**-100)
BEYOND = tl.constexpr(98.0)
LN2 = tl.constexpr(0.6931471805599453)
NORM_EPS = tl.constexpr(1e-12)
# 1 / norm of a frame whose norm was clamped to NORM_EPS lies above, every other one below.
CLAMPED = tl.constexpr(0.999e12)
# p - w of a frame is far below fp16's smallest normal number once T is large.
FP16_SCALE = tl.constexpr(8192.0)


@triton.jit
def padded(T):
    return tl.cdiv(T, UNIT) * UNIT


@triton.jit
def length(p_v, i_n, T):
    """Number of frames of sequence i_n: its length clamped to [0, T]."""
    return tl.minimum(tl.maximum(tl.load(p_v + i_n).to(tl.int64), 0), T).to(tl.int32)


@triton.jit
def valid(p_v, o_t, n_t, MASK: tl.constexpr):
    """Which of the frames o_t are real; n_t is their bound, p_v the sequence's row of the mask."""
    m_t = o_t < n_t
    if MASK:
        m_t = m_t & (tl.load(p_v + o_t, mask=m_t, other=0) != 0)
    return m_t


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
def sides(
    p_z1,
    p_z2,
    p_planes,
    p_v1,
    p_v2,
    i_n,
    i_d,
    T1,
    T2,
    D: tl.constexpr,
    DP: tl.constexpr,
    MASK: tl.constexpr,
):
    """Row (a) and column (c) side of sequence i_n: frames, operand of the products, position in a
    row of the statistics, bound, mask."""
    T_a, T_c = ordered(T1, T2, i_d)
    at_a = i_n * (padded(T1) + padded(T2)) + tl.where(i_d == 0, 0, padded(T1))
    at_c = i_n * (padded(T1) + padded(T2)) + tl.where(i_d == 0, padded(T1), 0)
    if p_planes is None:
        p_a, p_c = ordered(p_z1, p_z2, i_d)
        p_a += i_n * T_a * D
        p_c += i_n * T_c * D
    else:
        p_a = p_planes + at_a * DP
        p_c = p_planes + at_c * DP
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
    return T_a, p_a, p_c, at_a, at_c, n_a, n_c, p_va, p_vc


@triton.jit
def since(p_record, o_u, r1, r2, r3):
    """Earliest times of units, relative to a time passed as three numbers."""
    p_unit = p_record + o_u * UNIT
    return (tl.load(p_unit) - r1) + (tl.load(p_unit + 1) - r2) + (tl.load(p_unit + 2) - r3)


@triton.jit
def clock(p_a, p_record, row, o_m, P_a, BM: tl.constexpr):
    """A reference time of a row block, and its times relative to that; infinite if not real."""
    last = tl.maximum(P_a // UNIT - 1, 0)
    m_some = P_a > 0
    i_u = tl.minimum(row // UNIT, last)
    for k in tl.static_range(1, (BM + UNIT - 1) // UNIT):  # the first unit with a real frame
        none = tl.load(p_record + i_u * UNIT + SPAN, mask=m_some, other=0.0) < 0
        i_u = tl.where(none, tl.minimum(row // UNIT + k, last), i_u)
    p_unit = p_record + i_u * UNIT
    r1 = tl.load(p_unit, mask=m_some, other=0.0)
    r2 = tl.load(p_unit + 1, mask=m_some, other=0.0)
    r3 = tl.load(p_unit + 2, mask=m_some, other=0.0)
    b_ta = tl.load(p_a + o_m, mask=o_m < P_a, other=float("inf"))
    if BM > UNIT:
        b_ta += since(p_record, tl.minimum(o_m // UNIT, last), r1, r2, r3)
    return r1, r2, r3, b_ta


@triton.jit
def near_range(p_record, columns, r1, r2, r3, lo, hi, reach):
    """Columns of the other view within reach of the times [lo, hi], in units: from, to.

    With sorted times exactly the units that matter, otherwise a superset.
    """
    GROUP: tl.constexpr = 128
    units = tl.cdiv(columns, UNIT)
    reach = reach * 1.00001  # a superset, however differences were rounded
    b_first = tl.full([GROUP], 0, tl.int32) + units
    b_end = tl.zeros([GROUP], tl.int32)
    for u in range(0, units, GROUP):
        o_u = u + tl.arange(0, GROUP)
        o_r = tl.minimum(o_u, units - 1)
        b_span = tl.load(p_record + o_r * UNIT + SPAN)
        b_lo = since(p_record, o_r, r1, r2, r3)
        m_u = (o_u < units) & (b_span >= 0)
        m_u = m_u & (b_lo - hi <= reach) & (lo - (b_lo + b_span) <= reach)
        b_first = tl.minimum(b_first, tl.where(m_u, o_u, units))
        b_end = tl.maximum(b_end, tl.where(m_u, o_u + 1, 0))
    return tl.min(b_first, 0), tl.max(b_end, 0)


@triton.jit
def within(p_record, row, P_a, BM: tl.constexpr):
    """Where a row block's part of WITHIN lies, and which of its entries exist."""
    o_q = row // QUARTER + tl.arange(0, BM // QUARTER)
    o_w = o_q // (UNIT // QUARTER) * UNIT + WITHIN + o_q % (UNIT // QUARTER)
    return p_record + o_w, o_q * QUARTER < P_a


@triton.jit
def keep_range(p_record, row, P_a, first, end, BM: tl.constexpr):
    """Store the range for the gradient kernel: 16 bits each; an end of 65535 means no end."""
    p_w, m_w = within(p_record, row, P_a, BM)
    whole = tl.minimum(first, 65534) | (tl.minimum(end, 65535) << 16)
    b_whole = tl.zeros([BM // QUARTER], tl.int32) + whole
    tl.store(p_w, b_whole.to(tl.float32, bitcast=True), mask=m_w)


@triton.jit
def kept_range(p_record, row, P_a, BM: tl.constexpr):
    """The range that keep_range has stored for the rows of a block."""
    first = 65535
    end = 0
    for k in tl.static_range(BM // QUARTER):
        o_q = row // QUARTER + k
        o_w = o_q // (UNIT // QUARTER) * UNIT + WITHIN + o_q % (UNIT // QUARTER)
        whole = tl.load(p_record + o_w, mask=o_q * QUARTER < P_a, other=0.0)
        whole = whole.to(tl.int32, bitcast=True)
        some = (whole & 65535) < ((whole >> 16) & 65535)
        first = tl.minimum(first, tl.where(some, whole & 65535, 65535))
        end = tl.maximum(end, tl.where(some, (whole >> 16) & 65535, 0))
    return first, tl.where(end == 65535, 2**24, end)


@triton.jit
def tiles_of(first, end, columns, BN: tl.constexpr):
    """How a program walks over the columns in tiles: careful ones first, then plain ones.

    Careful tiles are those within reach, and the last tile if columns do not fill it. Returns the
    first of them, how many lie within reach, how many there are including the last tile, how many
    plain ones follow, and how many tiles within reach the plain loop leaves out.
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
def tile_index(k, first, near, last, inside, CAREFUL: tl.constexpr):
    """The k-th careful tile, or the k-th plain one."""
    return tl.where(k < near, first + k, last) if CAREFUL else k + tl.where(k >= first, inside, 0)


@triton.jit
def spread(rate, reach, p_var, TARGET: tl.constexpr):
    """Arguments of exponents(): those at variance 1, adjusted where p_var has another variance."""
    rate = tl.cast(rate, tl.float32)
    reach = tl.cast(reach, tl.float32)
    if p_var is not None:
        var = tl.load(p_var).to(tl.float32)
        # An invalid variance already makes the scores NaN.
        var = tl.where((var > 0.0) & (var < float("inf")), var, 1.0)
        if TARGET == "gauss":
            rate = rate / var
            reach = reach * tl.sqrt(var)
        else:
            sigma = tl.sqrt_rn(var)  # exact for the edge of a box of a whole number of frames
            rate = rate / sigma
            reach = reach * sigma
    return rate, reach


@triton.jit
def exponents(b_d, rate, reach, TARGET: tl.constexpr):
    """Base-2 exponents of the weights g within reach; beyond it exp2 returns 0.

    "gauss": of 2^32 g, so that each value within reach is a normal fp32 number. A multiply-add, so
    that both kernels round it once and in the same way: a row's targets then add up to 1 in the
    gradient too. Others are 2^-22 or more within reach: they need no factor.
    """
    m_near = tl.abs(b_d) <= reach
    if TARGET == "gauss":
        b_h = fma(b_d * b_d, rate * -1.0, 32.0)
    elif TARGET == "laplace":
        b_h = tl.abs(b_d) * (rate * -1.0)
    elif TARGET == "sigmoid":
        b_h = -tl.log2(1.0 + tl.exp2(tl.abs(b_d) * rate))
    else:
        b_h = tl.zeros_like(b_d)
    return tl.where(m_near, b_h, -300.0)


@triton.jit
def channels(
    p_z, row, m_t, k, B: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr
):
    """Channels k to k + BK of B frames from row on, zero where MASKED and not in m_t.

    Offsets within a tile are the same for all programs, and 32 bits wide."""
    o_k = k + tl.arange(0, BK)[None, :]
    p_tile = p_z + tl.cast(row, tl.int64) * D + (tl.arange(0, B)[:, None] * D + o_k)
    if MASKED and D % BK != 0:
        b_z = tl.load(p_tile, mask=m_t[:, None] & (o_k < D), other=0.0)
    elif MASKED:
        b_z = tl.load(p_tile, mask=m_t[:, None], other=0.0)
    elif D % BK != 0:
        b_z = tl.load(p_tile, mask=o_k < D, other=0.0)
    else:
        b_z = tl.load(p_tile)
    return b_z


@triton.jit
def of_columns(p_x, j, BN: tl.constexpr):
    """One number for each frame of the j-th tile."""
    return tl.load(p_x + j * BN + tl.arange(0, BN))


@triton.jit
def products(
    p_a,
    p_c,
    plane,  # elements in one plane
    b_za,
    row,
    m_m,
    j,
    m_n,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PLANES: tl.constexpr,
    MASKED: tl.constexpr,
    PREC: tl.constexpr,
):
    """<row, column> of the j-th tile of columns, BK channels at a time; its first channels."""
    b_s = tl.zeros([BM, BN], tl.float32)
    b_zc = b_za
    if PLANES == 0:
        b_zc = channels(p_c, j * BN, m_n, 0, BN, BK, D, MASKED)  # [BN, BK]
        b_s = dot(b_za, tl.trans(b_zc), b_s, PREC)
        for k in range(BK, D, BK):
            b_zk = channels(p_c, j * BN, m_n, k, BN, BK, D, MASKED)
            b_s = dot(channels(p_a, row, m_m, k, BM, BK, D, True), tl.trans(b_zk), b_s, PREC)
    elif DP == BK:  # rows are then loaded once, before the loop over tiles
        b_s = product_of_planes(p_a, p_c, plane, row, m_m, j, 0, b_s, DP, BM, BN, BK, PLANES)
    else:
        for k in range(0, DP, BK):
            b_s = product_of_planes(p_a, p_c, plane, row, m_m, j, k, b_s, DP, BM, BN, BK, PLANES)
    return b_s, b_zc


@triton.jit
def product_of_planes(
    p_a,
    p_c,
    plane,
    row,
    m_m,
    j,
    k,
    b_s,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PLANES: tl.constexpr,
):
    """b_s plus the contribution of channels k to k + BK."""
    b_ah = channels(p_a, row, m_m, k, BM, BK, DP, True)
    b_am = channels(p_a + plane, row, m_m, k, BM, BK, DP, True)
    b_ch = tl.trans(channels(p_c, j * BN, m_m, k, BN, BK, DP, False))
    b_cm = tl.trans(channels(p_c + plane, j * BN, m_m, k, BN, BK, DP, False))
    b_al = b_ah
    b_cl = b_ch
    if PLANES == 3:
        b_al = channels(p_a + 2 * plane, row, m_m, k, BM, BK, DP, True)
        b_cl = tl.trans(channels(p_c + 2 * plane, j * BN, m_m, k, BN, BK, DP, False))
    return add_product(b_ah, b_am, b_al, b_ch, b_cm, b_cl, b_s, PLANES)


@triton.jit
def add_product(b_xh, b_xm, b_xl, b_yh, b_ym, b_yl, b_acc, PLANES: tl.constexpr):
    """The product of numbers passed as sums of bf16, without terms below their last bit.

    It starts at 0 with the smallest terms and is added in fp32 at the end: tensor cores are said to
    truncate their sums, which then happens in few steps. The factor keeps the compiler from merging
    this product with earlier ones.
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
