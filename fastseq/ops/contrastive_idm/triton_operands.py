"""Operands of the products behind contrastive_idm's squared distances.

One kernel prepares what every tile would recompute: times as float32, squared norms, and the time
span of each block. float32 is split into bfloat16. The rows are split once, in that kernel; the
columns are split in each tile, since both are relative to the first of the rows.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot
from fastseq.ops.contrastive_idm.triton_parts import length


@triton.jit(do_not_specialize=["T", "st"])
def cidm_prepare_kernel(
    p_z,  # [N, T, D]
    p_t,  # [N, T] or None: frame indices
    p_len,  # [N] or None
    p_side,  # [N, 2, blocks * BT]: times, and half of the squared norms
    p_span,  # [N, blocks, 2]: the first and the last time of a block
    p_planes,  # [N, PLANES, blocks * BT, D], or None for half precision
    T,
    st,  # stride between sequences of the times
    D: tl.constexpr,
    BT: tl.constexpr,  # frames of a block; one program each
    BM: tl.constexpr,  # rows of a block; float32 is relative to its first frame
    BK: tl.constexpr,
    PLANES: tl.constexpr,  # 0: only times
):
    """Times: float32 ones unchanged, integers relative to the sequence's first frame. Padding has
    the first frame's time and an infinite norm, so that no hinge is open there."""
    blocks = tl.cdiv(T, BT)
    i_b = tl.program_id(0) % blocks
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    o_t = i_b * BT + tl.arange(0, BT)
    m_t = o_t < n
    if p_t is None:
        b_t = tl.where(m_t, o_t, 0).to(tl.float32)
    else:
        p_tn = p_t + i_n * st
        b_t = tl.load(p_tn + tl.where(m_t, o_t, 0))
        if b_t.dtype != tl.float32:
            b_t = (b_t.to(tl.int64) - tl.load(p_tn).to(tl.int64)).to(tl.float32)
    p_row = p_side + i_n * 2 * blocks * BT + o_t
    tl.store(p_row, b_t)
    p_block = p_span + (i_n * blocks + i_b) * 2
    low, high = extent(b_t, m_t)
    tl.store(p_block, low)
    tl.store(p_block + 1, high)
    if PLANES > 0:
        p_zn = p_z + i_n * T * D
        b_norm = tl.zeros([BT], tl.float32)
        for k in range(0, D, BK):
            b_z = channels(p_zn, o_t, n, k, D, BK)
            if PLANES > 1:
                b_z = b_z - channels(p_zn, o_t // BM * BM, n, k, D, BK)
                o_k = k + tl.arange(0, BK)
                y0, y1, y2 = split(b_z, PLANES)
                p_out = p_planes + (i_n * PLANES * blocks * BT + o_t)[:, None] * D + o_k[None, :]
                m_k = (o_k < D)[None, :]
                tl.store(p_out, y0, mask=m_k)
                stride = tl.cast(blocks, tl.int64) * BT * D
                tl.store(p_out + stride, y1, mask=m_k)
                if PLANES == 3:
                    tl.store(p_out + 2 * stride, y2, mask=m_k)
            b_z = b_z.to(tl.float32)
            b_norm += tl.sum(b_z * b_z, 1)
        tl.store(p_row + blocks * BT, tl.where(m_t, 0.5 * b_norm, float("inf")))


@triton.jit
def extent(b_t, m_t):
    """The first and the last time."""
    low = tl.min(tl.where(m_t, b_t, float("inf")), 0)
    return low, tl.max(tl.where(m_t, b_t, float("-inf")), 0)


@triton.jit
def channels(p_z, o_t, n, k, D: tl.constexpr, BK: tl.constexpr):
    """Channels k to k + BK of frames. Padding reads the last real frame: masking every row costs
    more, and the pairs of padding are never summed."""
    o_t = tl.minimum(o_t, tl.maximum(n - 1, 0))
    o_k = k + tl.arange(0, BK)
    p_tile = p_z + o_t.to(tl.int64)[:, None] * D + o_k[None, :]
    if D % BK == 0:  # noqa: SIM108
        b_z = tl.load(p_tile)
    else:
        b_z = tl.load(p_tile, mask=(o_k < D)[None, :], other=0.0)
    return b_z


@triton.jit
def centred(p_z, o_t, n, first, k, D: tl.constexpr, BK: tl.constexpr, PLANES: tl.constexpr):
    """Frames as operands of the product: float32 relative to the frame ``first``, half precision
    unchanged (its differences would be rounded, while its products are exact)."""
    b_z = channels(p_z, o_t, n, k, D, BK)
    if PLANES > 1:
        o_k = k + tl.arange(0, BK)
        b_first = tl.load(p_z + tl.cast(first, tl.int64) * D + o_k, mask=o_k < D, other=0.0)
        b_z = b_z - b_first[None, :]
    return b_z


@triton.jit
def upper(b_x):
    """float32 truncated to its upper 16 bits: a bfloat16."""
    return (b_x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def split(b_x, PLANES: tl.constexpr):
    """float32 as a sum of bfloat16: two have 16 bits, three all 24. Half precision is unchanged.

    Truncated rather than rounded, which takes fewer instructions and leaves an exact rest.
    """
    b_hi, b_mid, b_lo = b_x, b_x, b_x
    if PLANES > 1:
        b_upper = upper(b_x)
        b_rest = b_x - b_upper
        b_hi = b_upper.to(tl.bfloat16)
        b_mid = b_rest.to(tl.bfloat16)
        b_lo = b_mid
        if PLANES == 3:
            b_upper = upper(b_rest)
            b_mid = b_upper.to(tl.bfloat16)
            b_lo = (b_rest - b_upper).to(tl.bfloat16)
    return b_hi, b_mid, b_lo


@triton.jit
def planes(p_rows, stride, o_m, n, k, D: tl.constexpr, BK: tl.constexpr, PLANES: tl.constexpr):
    """The split rows: loaded, so that tensor cores read them from shared memory. Split here, they
    would occupy registers."""
    x0 = channels(p_rows, o_m, n, k, D, BK)
    x1, x2 = x0, x0
    if PLANES > 1:
        x1 = channels(p_rows + stride, o_m, n, k, D, BK)
    if PLANES > 2:
        x2 = channels(p_rows + 2 * stride, o_m, n, k, D, BK)
    return x0, x1, x2


@triton.jit
def dot_planes(x0, x1, x2, y0, y1, y2, b_acc, PLANES: tl.constexpr):
    """The product of split operands, to the last bits of float32. Small terms come first: tensor
    cores truncate what lies below the sum's last bit."""
    if PLANES == 1:
        return dot(x0, y0, b_acc, "tf32")
    b_part = tl.zeros(b_acc.shape, tl.float32)
    if PLANES == 3:
        b_part = dot(x2, y0, b_part, "tf32")
        b_part = dot(x0, y2, b_part, "tf32")
        b_part = dot(x1, y1, b_part, "tf32")
    b_part = dot(x1, y0, b_part, "tf32")
    b_part = dot(x0, y1, b_part, "tf32")
    b_part = dot(x0, y0, b_part, "tf32")
    return b_acc + b_part


@triton.jit
def half_squares(b_z, m_t):
    """Half of the squared norms; infinite for padding."""
    return tl.where(m_t, 0.5 * tl.sum(b_z * b_z, 1), float("inf"))


@triton.jit
def products(
    p_z,
    p_rows,
    stride,  # between the rows' planes
    p_norm,
    x0,  # the rows' first BK channels, split
    x1,
    x2,
    o_m,
    start,  # the first column
    n,
    first,
    BN: tl.constexpr,
    D: tl.constexpr,
    BK: tl.constexpr,
    PLANES: tl.constexpr,
):
    """Rows times columns; half of the columns' squared norms; their first BK channels, split.

    Half of a squared distance is the sum of the two half norms minus the product.
    """
    o_c = tl.arange(0, BN)
    o_n = start + o_c
    # Not by o_n, which would be kept in registers from the loop turn that loads the columns.
    m_n = o_c < n - start
    b_z = centred(p_z, o_n, n, first, 0, D, BK, PLANES)
    y0, y1, y2 = split(b_z, PLANES)
    b_s = tl.zeros([o_m.shape[0], BN], tl.float32)
    b_s = dot_planes(x0, x1, x2, tl.trans(y0), tl.trans(y1), tl.trans(y2), b_s, PLANES)
    if PLANES == 1:  # noqa: SIM108
        b_norm = tl.load(p_norm + o_n)
    else:
        b_norm = half_squares(b_z, m_n)
    for k in range(BK, D, BK):
        u0, u1, u2 = planes(p_rows, stride, o_m, n, k, D, BK, PLANES)
        b_z = centred(p_z, o_n, n, first, k, D, BK, PLANES)
        v0, v1, v2 = split(b_z, PLANES)
        b_s = dot_planes(u0, u1, u2, tl.trans(v0), tl.trans(v1), tl.trans(v2), b_s, PLANES)
        if PLANES > 1:
            b_norm += half_squares(b_z, m_n)
    return b_s, b_norm, y0, y1, y2
