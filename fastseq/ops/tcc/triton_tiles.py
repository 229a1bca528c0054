"""What the Triton kernels of tcc_loss share: frames, scores of a tile, their slopes.

Sequences are packed: z [M, T, D], padded frames and channels 0. With y, M = 2 N and sequence n goes
to n + N and back; without, M = N and it goes to n + shift for every shift. "Out" is the hop from a
sequence, "in" the one to it; hop g M + m of a group of shifts is that of sequence m by the g-th.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import INTERPRET, frames

LN2 = tl.constexpr(0.6931471805599453)
# Rows of the statistics of a cycle [6, hops, T]; all logarithms are base 2.
LSE_V = tl.constexpr(0)  # of the scores against v
LSE_U = tl.constexpr(1)  # of the logits against u
ERROR = tl.constexpr(2)  # predicted minus true time, in the caller's units
SLOPE = tl.constexpr(3)  # see slopes()
CURVE = tl.constexpr(4)
LEVEL = tl.constexpr(5)


@triton.jit
def dot(b_x, b_y, b_acc, PREC: tl.constexpr):
    """Two tiles of half precision as they are; with a computed one, in tf32, which holds frames of
    half precision exactly."""
    if INTERPRET or b_x.dtype != b_y.dtype:
        b_x = b_x.to(tl.float32)
        b_y = b_y.to(tl.float32)
    return tl.dot(b_x, b_y, b_acc, input_precision=PREC)


@triton.jit
def to_operand(b_x, PREC: tl.constexpr):
    """As the tensor cores will take it, so that sums are those of what is multiplied."""
    if PREC == "tf32":
        b_bits = (b_x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        b_x = b_bits.to(tl.float32, bitcast=True)
    return b_x


@triton.jit
def products(
    p_a,
    b_a,  # the rows' first BK channels, [BM, BK]
    o_m,
    m_m,
    p_c,
    o_n,
    m_n,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """<row, column> of a tile, BK channels at a time; the columns' first channels."""
    b_c = frames(p_c, o_n, m_n, 0, D, BK)  # [BN, BK]
    b_s = dot(b_a, tl.trans(b_c), tl.zeros([BM, BN], tl.float32), PREC)
    for k in range(BK, D, BK):
        b_ak = frames(p_a, o_m, m_m, k, D, BK)
        b_ck = frames(p_c, o_n, m_n, k, D, BK)
        b_s = dot(b_ak, tl.trans(b_ck), b_s, PREC)
    return b_s, b_c


@triton.jit
def chunk_of(p_c, b_c, o_n, m_n, chunk, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    """Channels chunk to chunk + BD of the columns, whose first BK channels are loaded."""
    if BK < D or BK != BD:
        b_c = frames(p_c, o_n, m_n, chunk, D, BD)
    return b_c


@triton.jit
def hop(p_len, i_u, i_v):
    """Frames that start a cycle from u over v, and frames of v: no cycle without both."""
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
    b_a,  # weight, times the loss's derivative by the error (in the caller's units)
    b_b,  # the same by the variance
    b_c,  # that times the variance
    m_own,  # where a frame meets itself
    m_pair,
    smoothing,
    n,
    TYPE: tl.constexpr,
):
    """Each cycle's derivative by its logits; rows and columns in either order."""
    b_beta = tl.exp2(b_x)
    if TYPE == "classification":
        b_y = tl.where(m_own, 1.0 - smoothing, 0.0) + smoothing / tl.maximum(n, 1).to(tl.float32)
        b_dl = b_a * (b_beta - b_y)
    elif TYPE == "regression_mse_var":
        b_dl = b_beta * (b_d * (b_a + b_b * b_d) - b_c)
    else:
        b_dl = b_beta * b_d * b_a
    return tl.where(m_pair, b_dl, 0.0)
