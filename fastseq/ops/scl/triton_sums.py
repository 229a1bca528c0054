"""Sums of the Triton kernels of scl_loss: parts of rows, exponentials, blocks of the loss."""

import triton
import triton.language as tl

from fastseq.ops.scl.triton_tiles import LARGEST, LN2, UNIT


@triton.jit
def partial_sums(b_x, PARTS: tl.constexpr):
    """Sums over the rows of a tile, as [rows, PARTS]. PARTS = 8 follows how threads store results
    of tensor cores, so that nothing crosses threads before the end. Add up the parts once."""
    ROWS: tl.constexpr = b_x.shape[0]
    if PARTS == 1:
        b_sums = tl.sum(b_x, 1)[:, None]
    else:
        b_sums = tl.sum(tl.reshape(b_x, [ROWS, b_x.shape[1] // PARTS, PARTS]), 1)
    return b_sums


@triton.jit
def two_partial_sums(b_x, b_y, PARTS: tl.constexpr):
    """partial_sums of both at once, so that both are computed in the layout of the first."""
    ROWS: tl.constexpr = b_x.shape[0]
    if PARTS == 1:
        b_x = partial_sums(b_x, PARTS)
        b_y = partial_sums(b_y, PARTS)
    else:
        b_xy = tl.reshape(tl.join(b_x, b_y), [ROWS, b_x.shape[1] // PARTS, PARTS, 2])
        b_x, b_y = tl.split(tl.sum(b_xy, 1))
    return b_x, b_y


@triton.jit
def denominators(b_e, b_max, b_r, ONLINE: tl.constexpr, PARTS: tl.constexpr):
    """Update with a tile: largest exponents, the reference of the sums, sums of exponentials."""
    b_shift = b_max
    if ONLINE:
        b_new = tl.maximum(b_max, tl.max(b_e, 1))
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_r *= tl.exp2(b_max - b_shift)[:, None]
        b_r += partial_sums(tl.exp2(b_e - b_shift[:, None]), PARTS)
        b_max = b_new
    else:
        b_r += partial_sums(tl.exp2(b_e), PARTS)
    return b_max, b_shift, b_r


@triton.jit
def with_more(p_more, stride, m_m, b_max, b_r, ONLINE: tl.constexpr):
    """Largest exponents and sums of exponentials, joined with those of columns summed elsewhere."""
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
def store_partial(p_row, N, T_a, m_out, b_xa, b_top, b_r, b_n, b_offset, b_mean):
    """Statistics of rows over some of their columns, as [3, N, T_a] natural logarithms: of the sum
    of exponentials, of the sum of targets, and the mean of scores less logarithms of targets.

    Targets are in the scale of the gradient kernel. Without columns the first is -1e30; without
    targets the second is -infinity and the mean 0. A factor of NaN makes all three NaN.
    """
    plane = tl.cast(N, tl.int64) * T_a
    b_bad = b_xa - b_xa
    m_some = b_n > 0
    b_lse = tl.where(b_r == 0, -1e30, (tl.log2(b_r) + b_top) * LN2)
    b_log = tl.where(m_some, (tl.log2(b_n) - b_offset) * LN2, float("-inf"))
    tl.store(p_row, b_lse + b_bad, mask=m_out)
    tl.store(p_row + plane, b_log + b_bad, mask=m_out)
    tl.store(p_row + 2 * plane, tl.where(m_some, b_mean * LN2, 0.0) + b_bad, mask=m_out)


@triton.jit
def largest(p_record, columns):
    """The largest factor of a view."""
    GROUP: tl.constexpr = 128
    b_most = tl.zeros([GROUP], tl.float32)
    units = tl.cdiv(columns, UNIT)
    for u in range(0, units, GROUP):
        o_u = u + tl.arange(0, GROUP)
        p_unit = p_record + o_u * UNIT + LARGEST
        b_most = tl.maximum(b_most, tl.load(p_unit, mask=o_u < units, other=0.0))
    most = tl.max(b_most, 0)
    return tl.where(most > 0, most, 1.0)


@triton.jit
def reduce(p_part, p_loss, p_coef, N, blocks, REDUCTION: tl.constexpr):
    """The loss and the weights of the directions, from the blocks of all programs."""
    # Larger tiles make stats kernels with the limit of 168 registers spill two of them.
    BV: tl.constexpr = 8
    BB: tl.constexpr = 32
    b_total = tl.zeros([BV], tl.float32)
    b_count = tl.zeros([BV], tl.float32)
    for v in range(0, N, BV):
        o_v = v + tl.arange(0, BV)
        m_v = o_v < N
        b_l1, b_c1 = block_sums(p_part, 0, o_v, m_v, N, blocks, BV, BB)
        b_l2, b_c2 = block_sums(p_part, 1, o_v, m_v, N, blocks, BV, BB)
        b_w1 = tl.full([BV], 1.0, tl.float32)
        b_w2 = b_w1
        if REDUCTION == "paper":
            b_w1 = 1.0 / tl.maximum(b_c1, 1.0)
            b_w2 = 1.0 / tl.maximum(b_c2, 1.0)
            b_count += ((b_c1 + b_c2) > 0).to(tl.float32)
        else:
            b_count += b_c1 + b_c2
        b_loss = b_l1 * b_w1 + b_l2 * b_w2
        b_total += b_loss
        if REDUCTION == "none":
            tl.store(p_loss + o_v, b_loss, mask=m_v)
        tl.store(p_coef + o_v, b_w1, mask=m_v)
        tl.store(p_coef + N + o_v, b_w2, mask=m_v)
    if REDUCTION == "sum":
        tl.store(p_loss, tl.sum(b_total, 0))
    elif REDUCTION != "none":
        share = 1.0 / tl.maximum(tl.sum(b_count, 0), 1.0)
        tl.store(p_loss, tl.sum(b_total, 0) * share)
        tl.debug_barrier()
        for v in range(0, N, BV):
            o_v = v + tl.arange(0, BV)
            m_v = o_v < N
            tl.store(p_coef + o_v, tl.load(p_coef + o_v, mask=m_v) * share, mask=m_v)
            p_c2 = p_coef + N + o_v
            tl.store(p_c2, tl.load(p_c2, mask=m_v) * share, mask=m_v)


@triton.jit
def block_sums(p_part, i_d, o_v, m_v, N, blocks, BV: tl.constexpr, BB: tl.constexpr):
    """Losses and real rows of the sequences o_v in one direction, summed over the blocks."""
    b_loss = tl.zeros([BV, BB], tl.float32)
    b_rows = tl.zeros([BV, BB], tl.float32)
    p_v = p_part + (i_d * N + o_v).to(tl.int64)[:, None] * blocks  # [BV, 1]
    for b in range(0, blocks, BB):
        o_b = b + tl.arange(0, BB)[None, :]
        m_b = m_v[:, None] & (o_b < blocks)
        b_loss += tl.load(p_v + o_b, mask=m_b, other=0.0)
        b_rows += tl.load(p_v + 2 * tl.cast(N, tl.int64) * blocks + o_b, mask=m_b, other=0.0)
    return tl.sum(b_loss, 1), tl.sum(b_rows, 1)
