"""One step of queue_nce's scan: a tile of the queue."""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames

# Exponentials of at most 1 are scaled for fp16, so that underflow stays below a rounding error.
FP16_SHIFT, FP16_UNDO = tl.constexpr(15.0), tl.constexpr(2.0**-15)


@triton.jit
def absorb(
    p_q,
    o_m,
    m_m,
    b_q,
    b_qm,
    b_ql,
    b_f,
    p_c,
    j,
    count,
    chunk,
    b_max,
    b_sum,
    b_acc,
    D: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PLANES: tl.constexpr,
    KEEP: tl.constexpr,
    LAST: tl.constexpr,
):
    """The running maximum, sum and weighted sum after the tile of the part's rows j to j + BN; the
    ``LAST`` tile has fewer."""
    SHIFT: tl.constexpr = FP16_SHIFT if tl.float16 == b_q.dtype else 0.0
    # Planes of the queue, which may be bf16 where q is fp32.
    THEIRS: tl.constexpr = 1 if tl.bfloat16 == p_c.dtype.element_ty else PLANES
    m_n = j + tl.arange(0, BN) < count
    b_c = rows(p_c, j, m_n, 0, D, BN, BK, LAST)  # [BN, BK]
    b_c, b_cm, b_cl = split(like(b_c, b_q, PLANES), THEIRS)
    b_x = tl.zeros([b_q.shape[0], BN], tl.float32)
    b_x = product(
        b_q, b_qm, b_ql, tl.trans(b_c), tl.trans(b_cm), tl.trans(b_cl), b_x, PLANES, THEIRS
    )
    for k in range(BK, D, BK):
        b_k, b_km, b_kl = split(frames(p_q, o_m, m_m, k, D, BK), PLANES)
        b_ck = rows(p_c, j, m_n, k, D, BN, BK, LAST)
        b_ck, b_ckm, b_ckl = split(like(b_ck, b_q, PLANES), THEIRS)
        b_ck, b_ckm, b_ckl = tl.trans(b_ck), tl.trans(b_ckm), tl.trans(b_ckl)
        if PLANES == 1:
            b_x = product(b_k, b_km, b_kl, b_ck, b_ckm, b_ckl, b_x, PLANES, THEIRS)
        else:
            b_0 = tl.zeros([b_q.shape[0], BN], tl.float32)
            b_x += product(b_k, b_km, b_kl, b_ck, b_ckm, b_ckl, b_0, PLANES, THEIRS)
    if LAST:
        b_x = tl.where(m_n[None, :], b_x, float("-inf"))
        # A factor is not negative: the greatest product is the greatest score.
    b_new = tl.maximum(b_max, tl.max(b_x, 1) * b_f)
    b_e = tl.exp2(b_x * b_f[:, None] - (b_new - SHIFT)[:, None])
    if LAST:
        b_e = tl.where(m_n[None, :], b_e, 0.0)
    b_shrink = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_shrink + tl.sum(b_e, 1)
    if KEEP:
        if BK < D or BK != BD:
            b_c = rows(p_c, j, m_n, chunk, D, BN, BD, LAST)
            b_c, b_cm, b_cl = split(like(b_c, b_q, PLANES), THEIRS)
        if PLANES == 1:
            b_acc = dot(b_e.to(b_q.dtype), b_c, b_acc * b_shrink[:, None], "tf32")
        else:
            b_e, b_em, b_el = split(b_e, PLANES)
            b_0 = tl.zeros(b_acc.shape, tl.float32)
            b_0 = product(b_e, b_em, b_el, b_c, b_cm, b_cl, b_0, PLANES, THEIRS)
            b_acc = tl.fma(b_acc, widened(b_shrink, b_acc), b_0)
    return b_new, b_sum, b_acc


@triton.jit
def widened(b_w, b_like):
    return tl.broadcast_to(b_w[:, None], b_like.shape)


@triton.jit
def like(b_c, b_q, PLANES: tl.constexpr):
    """Rows of the queue in the dtype in which they are multiplied, or split."""
    if PLANES == 1:
        return b_c.to(b_q.dtype)
    elif tl.bfloat16 == b_c.dtype:
        return b_c
    else:
        return b_c.to(tl.float32)


@triton.jit
def split(b_z, PLANES: tl.constexpr):
    """fp32 as a sum of ``PLANES`` tiles of bf16, which tensor cores multiply faster than tf32. With
    one plane it stays unchanged."""
    if PLANES == 1:
        return b_z, b_z, b_z
    else:
        # The rest that two planes drop matters, so it is rounded. Three planes are exact.
        b_hi = upper(b_z, 0x8000 if PLANES == 2 else 0)
        b_mid = b_z - b_hi
        b_lo = b_mid
        if PLANES > 2:
            b_lo = b_mid - upper(b_mid, 0)
            b_mid = upper(b_mid, 0)
        return b_hi.to(tl.bfloat16), b_mid.to(tl.bfloat16), b_lo.to(tl.bfloat16)


@triton.jit
def upper(b_z, add: tl.constexpr):
    """fp32 without the bits that bf16 lacks. A conversion to bf16 and back takes far longer."""
    return ((b_z.to(tl.int32, bitcast=True) + add) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def product(b_x, b_xm, b_xl, b_y, b_ym, b_yl, b_acc, PLANES: tl.constexpr, THEIRS: tl.constexpr):
    """x @ y + acc of planes. Small products come first: Hopper's tensor cores truncate what does
    not fit beside the sum so far."""
    if PLANES == 3:
        b_acc = dot(b_xl, b_y, b_acc, "tf32")
        if THEIRS == 3:
            b_acc = dot(b_x, b_yl, b_acc, "tf32")
            b_acc = dot(b_xm, b_ym, b_acc, "tf32")
    if PLANES > 1:
        b_acc = dot(b_xm, b_y, b_acc, "tf32")
    if THEIRS > 1:
        b_acc = dot(b_x, b_ym, b_acc, "tf32")
    return dot(b_x, b_y, b_acc, "tf32")


@triton.jit
def rows(p_c, j, m_n, k, D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LAST: tl.constexpr):
    """Channels k to k + BK of the queue's rows from j on."""
    o_k = k + tl.arange(0, BK)
    # The tile's offset is the same for all threads; a thread's position in the tile is constant.
    p_tile = p_c + tl.cast(j, tl.int64) * D + (tl.arange(0, BN)[:, None] * D + o_k[None, :])
    if LAST:
        return tl.load(p_tile, mask=m_n[:, None] & (o_k < D)[None, :], other=0.0)
    if D % BK != 0:
        return tl.load(p_tile, mask=(o_k < D)[None, :], other=0.0)
    return tl.load(p_tile)
