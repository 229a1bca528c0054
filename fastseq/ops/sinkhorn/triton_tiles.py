"""Tile functions of sinkhorn_alignment's Triton kernels. All exponents and logarithms are base 2.

A program's rows (suffix m) are frames of x if ROWS, otherwise frames of y; its columns (n) are
frames of the other side. Place 0 of a side is the virtual frame, place i + 1 is frame i. Places
without a frame have a potential of -inf, which removes them from every sum.

Packed frames are z [planes, 2 N, places, D]: x of pair n is sequence n, y is sequence N + n, with
zeros at places without a frame. Planes are sums of bf16, as in tcc's kernels.
"""

import triton
import triton.language as tl

from fastseq.ops.tcc.triton_pack import length

LOG2E = tl.constexpr(1.4426950408889634)
# Numbers of a pair, see options.py.
NUMBERS = tl.constexpr(8)


@triton.jit
def bounds(p_lx, p_ly, i_n, T, S):
    """Ends of the real places of x and y: number of frames plus 1; both 0 if either is empty."""
    n = length(p_lx, i_n, T)
    m = length(p_ly, i_n, S)
    both = (n > 0) & (m > 0)
    return tl.where(both, n + 1, 0), tl.where(both, m + 1, 0)


@triton.jit
def of_rows(x, y, ROWS: tl.constexpr):
    """(rows', columns') of a pair passed as (x's, y's)."""
    if ROWS:
        return x, y
    else:
        return y, x


@triton.jit
def real(o_p, end, VIRTUAL: tl.constexpr):
    """Which places have a frame, real or virtual."""
    m_p = o_p < end
    if not VIRTUAL:
        m_p = m_p & (o_p > 0)
    return m_p


@triton.jit
def turn_of(p_f, i_n, turns, turn, last):
    """A turn of p_f [N, turns, last + 1]."""
    return p_f + (i_n * turns + turn) * (last + 1)


@triton.jit
def potentials(p_turn, o_p, m_p):
    return tl.load(p_turn + o_p, mask=m_p, other=float("-inf"))


@triton.jit
def positions(p_pairs, i_n, o_p, Y: tl.constexpr, VIRTUAL: tl.constexpr):
    """Relative times of places of x, or of y."""
    step = tl.load(p_pairs + i_n * NUMBERS + (2 if Y else 1)).to(tl.float32)
    return (o_p + (1 if VIRTUAL else 0)).to(tl.float32) * step


@triton.jit
def centres(p_c, p_pairs, i_n, T, o_p, m_p):
    """Centre of the second prior of places of x; the virtual frame's is y's first position."""
    first = tl.load(p_pairs + i_n * NUMBERS + 2).to(tl.float32)
    m_c = m_p & (o_p > 0)
    b_c = tl.load(p_c + i_n * T + o_p - 1, mask=m_c, other=0.0).to(tl.float32)
    return tl.where(m_c, b_c, first)


@triton.jit
def numbers(p_pairs, i_n):
    """1 / epsilon and the weights of the priors, in base 2; cost and weight of virtual cells."""
    p_pair = p_pairs + i_n * NUMBERS
    rate = tl.load(p_pair).to(tl.float32) * LOG2E
    narrow = tl.load(p_pair + 3).to(tl.float32) * LOG2E
    kappa = tl.load(p_pair + 4).to(tl.float32) * LOG2E
    phi = tl.load(p_pair + 5).to(tl.float32)
    cost = tl.load(p_pair + 6).to(tl.float32)
    weight = tl.load(p_pair + 7).to(tl.float32) * LOG2E
    return rate, narrow, kappa, phi, cost, weight


@triton.jit
def tile_of(
    b_s,  # products <row, column>
    b_hm,  # squared norms
    b_hn,
    b_tm,  # positions
    b_tn,
    b_c,  # centres of x's places: of rows if ROWS, otherwise of columns
    o_m,
    o_n,
    pair,  # of numbers()
    ROWS: tl.constexpr,
    CENTRES: tl.constexpr,
    VIRTUAL: tl.constexpr,
):
    """Distances D of a tile and scores l = L - D / epsilon."""
    rate, narrow, kappa, phi, cost, weight = pair
    b_d = (b_hm[:, None] + b_hn[None, :]) - 2.0 * b_s
    b_d = tl.where(b_d < 0.0, 0.0, b_d)  # not a maximum: NaN stays
    b_u = b_tm[:, None] - b_tn[None, :]
    b_u = b_u * b_u
    b_l = b_u * -narrow
    b_k = 1.0 / (b_u + 1.0)
    if CENTRES:
        b_v = b_c[:, None] - b_tn[None, :] if ROWS else b_tm[:, None] - b_c[None, :]
        b_v = b_v * b_v
        # One of the priors may have the weight 0, hence the exponent -inf.
        b_l += tl.log2(phi)
        b_r = b_v * -narrow + tl.log2(1.0 - phi)
        b_l = tl.maximum(b_l, b_r) + tl.log2(1.0 + tl.exp2(-tl.abs(b_l - b_r)))
        b_k = b_k * phi + (1.0 - phi) / (b_v + 1.0)
    b_l += b_k * kappa
    if VIRTUAL:
        m_m = (o_m == 0)[:, None]
        m_n = (o_n == 0)[None, :]
        b_l = tl.where(m_m != m_n, weight, b_l)
        b_d = tl.where(m_m | m_n, cost, b_d)
    return b_d, b_l - b_d * rate


@triton.jit
def exponentials(b_l, b_m, b_n, ROWS: tl.constexpr):
    """exp(l + f + g) from potentials of rows and columns. Sums round in the same order, whichever
    side has the rows: an error in common then cancels in the gradient."""
    if ROWS:
        return tl.exp2((b_l + b_n[None, :]) + b_m[:, None])
    else:
        return tl.exp2((b_l + b_m[:, None]) + b_n[None, :])
