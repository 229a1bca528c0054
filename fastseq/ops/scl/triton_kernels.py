"""The Triton kernels of scl_loss. Direction 0 takes its rows from view 1, direction 1 from view 2.

A program owns BM rows of one sequence in one direction and walks over the other view in tiles of BN
frames, so nothing is added across programs before the last one ends, which adds up the losses in
an order of its own: no float atomics, no zero-fill, the same bits every time.
README.md in this folder derives the formulas; all exponents and logarithms here are base 2.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import is_last
from fastseq.ops.scl.triton_tiles import (
    CLAMPED,
    FP16_SCALE,
    LN2,
    block_sums,
    clock,
    dot,
    frames,
    near_indices,
    near_range,
    ordered,
    products,
    row_norms,
    sides,
    tile_index,
    times,
    valid,
    weights,
)


@triton.jit(do_not_specialize=["N", "T1", "T2", "st1", "st2"])
def scl_stats_kernel(
    p_z1,  # [N, T1, D]
    p_z2,  # [N, T2, D]
    p_t1,  # [N, T1] or None: frame indices
    p_t2,  # [N, T2] or None
    p_v1,  # None, lengths [N] or mask [N, T1]
    p_v2,  # None, lengths [N] or mask [N, T2]
    p_stats,  # [3, N, T1 + T2]: 1/R, 1/N, 1/norm (online: the maximum instead)
    p_part,  # [2, 2, N, blocks]: losses and real rows of each block, per direction
    p_loss,  # [N] or []
    p_coef,  # [2, N]: weights of the directions
    p_ticket,  # 0, and 0 again in the end
    p_more,  # what 1/R starts from, as scl_more_kernel leaves it, or None
    N,
    T1,
    T2,
    st1,  # strides between sequences of the times
    st2,
    scale,  # log2(e) / temperature
    gauss,  # log2(e) / (4 variance)
    reach,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    NORM: tl.constexpr,
    ONLINE: tl.constexpr,
    KL: tl.constexpr,
    REDUCTION: tl.constexpr,
    MASK: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    gauss = tl.cast(gauss, tl.float32)
    reach = tl.cast(reach, tl.float32)
    blocks = tl.cdiv(tl.maximum(T1, T2), BM)
    i_b = tl.program_id(0) % blocks
    i_d = tl.program_id(0) // blocks % 2
    i_n = (tl.program_id(0) // blocks // 2).to(tl.int64)
    T_a, p_a, p_c, n_a, n_c, p_va, p_vc = sides(p_z1, p_z2, p_v1, p_v2, i_n, i_d, T1, T2, D, MASK)
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = valid(p_va, o_m, n_a, MASK)
    rows = tl.sum(m_m.to(tl.int32), 0)
    tiles = tl.where(rows > 0, tl.cdiv(n_c, BN), 0)
    if p_t1 is None:
        b_ta = (o_m - i_b * BM).to(tl.float32)
        first, near = near_indices(i_b * BM, tiles, reach, BM, BN)
    else:
        p_tc, ref, b_ta, lo, hi = clock(p_t1, p_t2, st1, st2, i_n, i_d, o_m, m_m, T_a)
        first, near = near_range(p_tc, p_vc, n_c, tiles, ref, lo, hi, reach, BN, MASK)
    b_ta = tl.where(m_m, b_ta, float("inf"))  # within reach of nothing

    b_za = frames(p_a, o_m, m_m, 0, D, BK)  # [BM, BK]
    b_fa = tl.full([BM], 1.0, tl.float32)  # 1 / norm
    if NORM:
        b_fa = row_norms(p_a, b_za, o_m, m_m, D, BK)
    # Half of the scale on each side: both directions then round a similarity to the same bits, and
    # the gradient meets the very maxima that were stored.
    root = tl.sqrt(scale)
    b_xa = b_fa * root

    # What exponents are relative to: the largest so far, or the constant that bounds them all.
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_ref = tl.zeros([BM], tl.float32) + (0.0 if ONLINE else scale)
    b_r = tl.zeros([BM], tl.float32)
    if p_more is not None:
        p_extra = p_more + i_n * (T1 + T2) + tl.where(i_d == 0, 0, T1) + o_m
        b_r = tl.load(p_extra, mask=m_m, other=0.0)
        if ONLINE:
            b_max = tl.load(p_extra + tl.cast(N, tl.int64) * (T1 + T2), mask=m_m, other=b_max)
    b_n = tl.zeros([BM], tl.float32)
    b_p = tl.zeros([BM], tl.float32)
    b_d0 = tl.full([BM], 0.0, tl.float32) + reach  # nearest frame of the other view
    for OUTSIDE in tl.static_range(2):
        for k in range(0, tiles - near if OUTSIDE else near):
            j = tile_index(k, first, near, OUTSIDE)
            o_n = j * BN + tl.arange(0, BN)
            m_n = valid(p_vc, o_n, n_c, MASK)
            b_s, b_fc, _ = products(p_a, p_c, b_za, o_m, m_m, o_n, m_n, D, BM, BN, BK, NORM, PREC)
            b_x = b_s * (b_xa[:, None] * (b_fc * root)[None, :])
            if ONLINE:
                b_e = b_x + tl.where(m_n, 0.0, float("-inf"))[None, :]
                b_new = tl.maximum(b_max, tl.max(b_e, 1))
                b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
                b_r = b_r * tl.exp2(b_max - b_shift) + tl.sum(tl.exp2(b_e - b_shift[:, None]), 1)
                b_p += (b_shift - b_ref) * b_n
                b_ref = b_shift
                b_max = b_new
            else:
                b_shift = tl.where(m_n, -scale, float("-inf"))
                b_r += tl.sum(tl.exp2(b_x + b_shift[None, :]), 1)

            if not OUTSIDE:
                if p_t1 is None:
                    b_tc = (o_n - i_b * BM).to(tl.float32)
                else:
                    b_tc = times(p_tc, o_n, m_n, ref)
                b_tc = tl.where(m_n, b_tc, float("inf"))
                # Exponents relative to the row's nearest frame so far: exact at any gap.
                b_d = tl.abs(b_ta[:, None] - b_tc[None, :])
                b_new = tl.minimum(b_d0, tl.min(b_d, 1))
                b_down = -2.0 * gauss * (b_d0 - b_new) * (b_d0 + b_new)
                b_h = -2.0 * gauss * (b_d - b_new[:, None]) * (b_d + b_new[:, None])
                b_h = tl.where(b_d <= reach, b_h, -300.0)  # of which exp2 is 0
                b_w = tl.exp2(b_h)
                b_q = b_ref[:, None] - b_x
                if KL:
                    b_q += b_h
                    b_p += b_down * b_n
                b_p = b_p * tl.exp2(b_down) + tl.sum(b_w * b_q, 1)
                b_n = b_n * tl.exp2(b_down) + tl.sum(b_w, 1)
                b_d0 = b_new

    # A row with nothing within reach: no loss, and statistics that make its gradient exactly 0.
    m_row = m_m & (b_n > 0)
    b_loss = b_p / b_n + tl.log2(b_r)
    if KL:
        b_loss -= tl.log2(b_n)
    b_n *= weights(b_d0, gauss, reach)  # on the scale of the gradient kernel
    T = T1 + T2
    p_row = p_stats + i_n * T + tl.where(i_d == 0, 0, T1) + o_m
    m_in = o_m < T_a
    stride = tl.cast(N, tl.int64) * T
    tl.store(p_row, tl.where(m_row, 1.0 / b_r, 0.0), mask=m_in)
    tl.store(p_row + stride, tl.where(m_row, 1.0 / b_n, 0.0), mask=m_in)
    if ONLINE:
        tl.store(p_row + 2 * stride, tl.where(m_row, b_max, float("inf")), mask=m_in)
    else:
        tl.store(p_row + 2 * stride, b_fa, mask=m_in)
    p_block = p_part + (i_d * N + i_n) * blocks + i_b
    tl.store(p_block, tl.sum(tl.where(m_row, b_loss * LN2, 0.0), 0))
    tl.store(p_block + 2 * N * tl.cast(blocks, tl.int64), rows.to(tl.float32))
    if is_last(p_ticket):
        reduce(p_part, p_loss, p_coef, N, blocks, REDUCTION)


@triton.jit
def reduce(p_part, p_loss, p_coef, N, blocks, REDUCTION: tl.constexpr):
    """The loss, and the weights of the directions, from the blocks of all programs."""
    # Larger tiles make stats kernels that are held to 168 registers spill two of them.
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


@triton.jit(
    do_not_specialize=["N", "T1", "T2", "st1", "st2", "sg", "first_direction", "directions"]
)
def scl_grad_kernel(
    p_z1,
    p_z2,
    p_t1,
    p_t2,
    p_v1,
    p_v2,
    p_stats,
    p_coef,  # [2, N]
    p_grad,  # gradient of the loss, [N] with stride sg
    p_d1,  # [N, T1, D]
    p_d2,  # [N, T2, D]
    p_more,  # [N, T1 + T2, D]: what gradients have besides, or None
    N,
    T1,
    T2,
    st1,
    st2,
    sg,
    first_direction,  # 0, or 1 when view 1 needs no gradient
    directions,
    scale,
    gauss,
    reach,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
    ONLINE: tl.constexpr,
    MASK: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    gauss = tl.cast(gauss, tl.float32)
    reach = tl.cast(reach, tl.float32)
    FP16: tl.constexpr = p_z1.dtype.element_ty == tl.float16
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    blocks = tl.cdiv(tl.maximum(T1, T2), BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_d = first_direction + pid // blocks % directions
    i_n = (pid // blocks // directions).to(tl.int64)
    T_a, p_a, p_c, n_a, n_c, p_va, p_vc = sides(p_z1, p_z2, p_v1, p_v2, i_n, i_d, T1, T2, D, MASK)
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = valid(p_va, o_m, n_a, MASK)
    rows = tl.sum(m_m.to(tl.int32), 0)
    tiles = tl.where(rows > 0, tl.cdiv(n_c, BN), 0)
    if p_t1 is None:
        b_ta = (o_m - i_b * BM).to(tl.float32)
        first, near = near_indices(i_b * BM, tiles, reach, BM, BN)
    else:
        p_tc, ref, b_ta, lo, hi = clock(p_t1, p_t2, st1, st2, i_n, i_d, o_m, m_m, T_a)
        first, near = near_range(p_tc, p_vc, n_c, tiles, ref, lo, hi, reach, BN, MASK)
    b_ta = tl.where(m_m, b_ta, float("inf"))  # within reach of nothing

    # The two directions' weights relative to the larger one, which is applied at the end: p - w
    # times 1 / frames would leave fp16.
    upstream = tl.load(p_grad + i_n * sg)
    w_a = upstream * tl.load(p_coef + i_d * N + i_n)
    w_c = upstream * tl.load(p_coef + (1 - i_d) * N + i_n)
    weight = tl.maximum(tl.abs(w_a), tl.abs(w_c))
    w_a = tl.where(weight == 0, 0.0, w_a / weight)
    w_c = tl.where(weight == 0, 0.0, w_c / weight)

    T = T1 + T2
    stride = tl.cast(N, tl.int64) * T
    p_sa = p_stats + i_n * T + tl.where(i_d == 0, 0, T1)
    p_sc = p_stats + i_n * T + tl.where(i_d == 0, T1, 0)
    b_ra = tl.load(p_sa + o_m, mask=m_m, other=0.0) * w_a
    b_na = tl.load(p_sa + stride + o_m, mask=m_m, other=0.0) * w_a
    b_za = frames(p_a, o_m, m_m, 0, D, BK)
    b_fa = tl.full([BM], 1.0, tl.float32)
    if ONLINE:
        b_ma = tl.load(p_sa + 2 * stride + o_m, mask=m_m, other=float("inf"))
        if NORM:
            b_fa = row_norms(p_a, b_za, o_m, m_m, D, BK)
    elif NORM:
        b_fa = tl.load(p_sa + 2 * stride + o_m, mask=m_m, other=0.0)
    root = tl.sqrt(scale)
    b_xa = b_fa * root

    b_acc = tl.zeros([BM, BD], tl.float32)
    b_proj = tl.zeros([BM], tl.float32)
    for OUTSIDE in tl.static_range(2):
        for k in range(0, tiles - near if OUTSIDE else near):
            j = tile_index(k, first, near, OUTSIDE)
            o_n = j * BN + tl.arange(0, BN)
            m_n = valid(p_vc, o_n, n_c, MASK)
            b_rc = tl.load(p_sc + o_n, mask=m_n, other=0.0) * w_c
            b_nc = tl.load(p_sc + stride + o_n, mask=m_n, other=0.0) * w_c
            b_s, b_fc, b_zc = products(
                p_a, p_c, b_za, o_m, m_m, o_n, m_n, D, BM, BN, BK, NORM and ONLINE, PREC
            )
            # 1 / norm; 0 takes masked columns out of everything that follows.
            if NORM and not ONLINE:
                b_fc = tl.load(p_sc + 2 * stride + o_n, mask=m_n, other=0.0)
            else:
                b_fc = tl.where(m_n, b_fc, 0.0)
            b_x = b_s * (b_xa[:, None] * (b_fc * root)[None, :])
            if ONLINE:
                b_mc = tl.load(p_sc + 2 * stride + o_n, mask=m_n, other=float("inf"))
                b_e = b_x + tl.where(m_n, 0.0, float("-inf"))[None, :]
                # No score exceeds its maximum, but one computed anew may, by its rounding.
                b_g = tl.exp2(tl.minimum(b_e - b_ma[:, None], 0.0)) * b_ra[:, None]
                b_g += tl.exp2(tl.minimum(b_e - b_mc[None, :], 0.0)) * b_rc[None, :]
            else:
                b_g = tl.exp2(b_x - scale) * (b_ra[:, None] + b_rc[None, :])

            if not OUTSIDE:
                if p_t1 is None:
                    b_tc = (o_n - i_b * BM).to(tl.float32)
                else:
                    b_tc = times(p_tc, o_n, m_n, ref)
                b_tc = tl.where(m_n, b_tc, float("inf"))
                b_w = weights(b_ta[:, None] - b_tc[None, :], gauss, reach)
                b_g -= b_w * (b_na[:, None] + b_nc[None, :])

            if NORM:
                b_proj += tl.sum(b_g * b_x, 1)
            if BK < D:
                b_zc = frames(p_c, o_n, m_n, chunk, D, BD)  # [BN, BD]
            if FP16:
                b_g *= FP16_SCALE
                if NORM:
                    # The power of two of 1 / norm goes to the frame (exactly), the rest to p - w.
                    b_pow = (b_fc.to(tl.int32, bitcast=True) & 0x7F800000).to(
                        tl.float32, bitcast=True
                    )
                    b_zc = (b_zc.to(tl.float32) * b_pow[:, None]).to(tl.float16)
                    b_fc = tl.where(b_pow > 0, b_fc / b_pow, 0.0)
            b_g = (b_g * b_fc[None, :]).to(b_zc.dtype)
            b_acc = dot(b_g, b_zc, b_acc, PREC)

    if FP16:
        b_acc *= 1.0 / FP16_SCALE
    if NORM:
        # d<z, zc>/dz of normalised z: remove the part along z, unless the norm was clamped.
        b_proj = tl.where(b_fa < CLAMPED, b_proj * b_fa / scale, 0.0)
        b_zd = frames(p_a, o_m, m_m, chunk, D, BD).to(tl.float32)
        b_acc = (b_acc - b_zd * b_proj[:, None]) * b_fa[:, None]
    b_acc *= weight * scale * LN2  # scale * ln 2 = 1 / temperature
    p_d, _ = ordered(p_d1, p_d2, i_d)
    o_k = chunk + tl.arange(0, BD)
    p_out = p_d + (i_n * T_a + o_m)[:, None] * D + o_k[None, :]
    m_out = (o_m < T_a)[:, None] & (o_k < D)[None, :]
    if p_more is not None:
        p_extra = p_more + (i_n * T + tl.where(i_d == 0, 0, T1) + o_m)[:, None] * D + o_k[None, :]
        b_acc += tl.load(p_extra, mask=m_m[:, None] & m_out, other=0.0)
    tl.store(p_out, tl.where(m_m[:, None], b_acc, 0.0).to(p_d1.dtype.element_ty), mask=m_out)
