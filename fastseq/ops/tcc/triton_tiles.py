"""Functions that tcc_loss's Triton kernels share: planes of bf16, scores of a tile, their slopes.

Sequences are packed: z [planes, M, T, D], with padded frames and channels 0. With y, M = 2 N, and
sequence n goes to n + N and the reverse. Without y, M = N, and it goes to n + shift for every
shift. "Out" is the hop from a sequence, "in" the hop to it. Hop g M + m of a group of shifts is
that of sequence m by the g-th shift.

T is a multiple of SPAN, and the values stored for a padded frame remove it from every sum: a bias
of -inf, a log-sum-exp of inf, slopes of 0. So no tile has a mask.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot

SPAN = tl.constexpr(64)
LN2 = tl.constexpr(0.6931471805599453)
# Rows of the statistics of a cycle [6, hops, T]; all logarithms are base 2.
LSE_V = tl.constexpr(0)  # of the scores against v
LSE_U = tl.constexpr(1)  # of the logits against u
ERROR = tl.constexpr(2)  # predicted minus true time, in the caller's units
SLOPE = tl.constexpr(3)  # see slopes()
CURVE = tl.constexpr(4)
LEVEL = tl.constexpr(5)


@triton.jit
def top(b_x, CONVERT: tl.constexpr = False):
    """The upper 16 bits of fp32: as bf16, and as fp32. Truncated, not rounded: a conversion would
    cost two to four times as much as any other operation here. NaN stays NaN."""
    b_bits = b_x.to(tl.int32, bitcast=True)
    if CONVERT:
        b_top = (b_bits & -0x10000).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        b_top = (b_bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return b_top, (b_bits & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def split(b_x, P: tl.constexpr, CONVERT: tl.constexpr = False):
    """P planes of bf16 whose sum is x to 8 P bits, the last one rounded."""
    planes = ()
    for _i in tl.static_range(1, P):
        b_top, b_cut = top(b_x, CONVERT)
        planes += (b_top,)
        b_x -= b_cut
    planes += (b_x.to(tl.bfloat16),)
    return planes


@triton.jit
def cut(b_x, P: tl.constexpr, CONVERT: tl.constexpr = False):
    """Like split(), but with the last plane truncated; and the sum of the planes."""
    b_top, b_sum = top(b_x, CONVERT)
    planes = (b_top,)
    for _i in tl.static_range(1, P):
        b_top, b_cut = top(b_x - b_sum, CONVERT)
        planes += (b_top,)
        b_sum += b_cut
    return planes, b_sum


@triton.jit
def whole(planes):
    """The sum of planes, smallest first."""
    b_x = planes[len(planes) - 1].to(tl.float32)
    for i in tl.static_range(1, len(planes)):
        b_x += planes[len(planes) - 1 - i].to(tl.float32)
    return b_x


@triton.jit
def tile(
    p_z,
    plane,  # elements from one plane to the next
    first,
    k,
    P: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    """Channels k to k + BK of BT frames from the first one on, in all planes."""
    o_tile = tl.arange(0, BT)[:, None] * D + tl.arange(0, BK)[None, :]
    p_tile = p_z + tl.cast(first, tl.int64) * D + k + o_tile
    planes = (tl.load(p_tile),)
    for i in tl.static_range(1, P):
        planes += (tl.load(p_tile + i * plane),)
    return planes


@triton.jit
def store_tile(p_z, plane, first, k, planes, D: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
    o_tile = tl.arange(0, BT)[:, None] * D + tl.arange(0, BK)[None, :]
    p_tile = p_z + tl.cast(first, tl.int64) * D + k + o_tile
    for i in tl.static_range(len(planes)):
        tl.store(p_tile + i * plane, planes[i])


@triton.jit
def multiply(a, c, b_acc, ORDERS: tl.constexpr, TRANS: tl.constexpr):
    """Add the product of two numbers in planes: the planes i and j with i + j < ORDERS, small
    terms first."""
    for o in tl.static_range(ORDERS):
        for i in tl.static_range(len(a)):
            for j in tl.static_range(len(c)):
                if i + j == ORDERS - 1 - o:
                    b_acc = dot(a[i], tl.trans(c[j]) if TRANS else c[j], b_acc, "ieee")
    return b_acc


@triton.jit
def chunks(
    p_z,
    plane,
    first,
    k,
    N: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    """N tiles of BK channels each, from channel k on."""
    found = (tile(p_z, plane, first, k, P, D, BT, BK),)
    for i in tl.static_range(1, N):
        found += (tile(p_z, plane, first, k + i * BK, P, D, BT, BK),)
    return found


@triton.jit
def chunks_of(
    c,
    p_c,
    plane,
    first,
    chunk,
    D: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Channels chunk to chunk + BD of the columns; c has all channels, or the first BK."""
    if BD < D:
        return chunks(p_c, plane, first, chunk, BD // BK, len(c[0]), D, BN, BK)
    else:
        return c


@triton.jit
def scores(
    a,  # chunks of the rows
    p_a,
    plane_a,
    first_a,
    c,  # chunks of the columns
    p_c,
    plane_c,
    first_c,
    ORDERS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    FRESH: tl.constexpr,
):
    """<row, column> of a tile. FRESH: each chunk's products start from 0, because tensor cores
    truncate numbers that they add to a larger sum."""
    b_s = multiply(a[0], c[0], tl.zeros([BM, BN], tl.float32), ORDERS, True)
    for k in tl.static_range(1, len(c)):
        if FRESH:
            b_s += multiply(a[k], c[k], tl.zeros([BM, BN], tl.float32), ORDERS, True)
        else:
            b_s = multiply(a[k], c[k], b_s, ORDERS, True)
    for k in range(len(c) * BK, D, BK):
        a_k = tile(p_a, plane_a, first_a, k, len(a[0]), D, BM, BK)
        c_k = tile(p_c, plane_c, first_c, k, len(c[0]), D, BN, BK)
        if FRESH:
            b_s += multiply(a_k, c_k, tl.zeros([BM, BN], tl.float32), ORDERS, True)
        else:
            b_s = multiply(a_k, c_k, b_s, ORDERS, True)
    return b_s


@triton.jit
def zeros(N: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    found = (tl.zeros([BM, BK], tl.float32),)
    for _k in tl.static_range(1, N):
        found += (tl.zeros([BM, BK], tl.float32),)
    return found


@triton.jit
def accumulate(acc, planes, c, ORDERS: tl.constexpr, FRESH: tl.constexpr):
    """Add the weighted columns to each chunk of a sum."""
    found = (add(acc[0], planes, c[0], ORDERS, FRESH),)
    for k in tl.static_range(1, len(c)):
        found += (add(acc[k], planes, c[k], ORDERS, FRESH),)
    return found


@triton.jit
def add(b_acc, planes, c, ORDERS: tl.constexpr, FRESH: tl.constexpr):
    if FRESH:
        b_acc += multiply(planes, c, tl.zeros_like(b_acc), ORDERS, False)
    else:
        b_acc = multiply(planes, c, b_acc, ORDERS, False)
    return b_acc


@triton.jit
def scaled(acc, b_by):
    """Each chunk of a sum times one number per row."""
    found = (acc[0] * b_by[:, None],)
    for k in tl.static_range(1, len(acc)):
        found += (acc[k] * b_by[:, None],)
    return found


@triton.jit
def hop(p_len, i_u, i_v):
    """Number of frames that start a cycle from u over v (0 if v is empty), and of frames of v."""
    n_v = tl.load(p_len + i_v)
    n_u = tl.load(p_len + i_u)
    return tl.where(n_v > 0, n_u, 0), n_v


@triton.jit
def row_of(p_row, which, i_h, hops, T):
    """The statistic ``which`` of the frames of hop i_h."""
    return p_row + (which * hops.to(tl.int64) + i_h) * T


@triton.jit
def slopes(
    b_x,  # log2 of beta
    b_d,  # t_k - t_i - e_i
    b_a,  # weight times the loss's derivative by the error (caller's units)
    b_b,  # weight times the derivative by the variance
    b_c,  # b_b times the variance
    b_y,  # for the classification: the label
    TYPE: tl.constexpr,
):
    """Each cycle's derivative by its logits; works with rows and columns in either order."""
    b_beta = tl.exp2(b_x)
    if TYPE == "classification":
        b_dl = b_a * (b_beta - b_y)
    elif TYPE == "regression_mse_var":
        b_dl = b_beta * (b_d * (b_a + b_b * b_d) - b_c)
    else:
        b_dl = b_beta * b_d * b_a
    return b_dl


@triton.jit
def labels(o_m, o_n, smoothing, n, TYPE: tl.constexpr):
    """For each cycle, 1 at its own frame, smoothed over n frames."""
    b_y = 0.0
    if TYPE == "classification":
        share = smoothing / tl.maximum(n, 1).to(tl.float32)
        b_y = tl.where(o_m[:, None] == o_n[None, :], 1.0 - smoothing, 0.0) + share
    return b_y
