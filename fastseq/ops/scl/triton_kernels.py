"""The Triton kernels of scl_loss. Direction 0 takes its rows from view 1, direction 1 from view 2.

A program owns BM rows of one sequence in one direction and walks over the other view in tiles of BN
frames. Programs add nothing together until the last one to finish sums the losses in a fixed order:
no float atomics, no zero-fill, the same bits every time.
README.md in this folder derives the formulas; all exponents and logarithms here are base 2.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, is_last, over, split
from fastseq.ops.scl.triton_sums import (
    denominators,
    largest,
    partial_sums,
    reduce,
    store_partial,
    two_partial_sums,
    with_more,
)
from fastseq.ops.scl.triton_tiles import (
    BEYOND,
    CLAMPED,
    FACTOR,
    FAR,
    FARTHEST,
    FP16_SCALE,
    LN2,
    MAXIMUM,
    RECORD,
    TARGETS,
    TIME,
    UNIT,
    R,
    add_product,
    channels,
    clock,
    exponents,
    keep_range,
    kept_range,
    near_range,
    of_columns,
    ordered,
    padded,
    products,
    sides,
    since,
    spread,
    tile_index,
    tiles_of,
    valid,
)


@triton.jit(do_not_specialize=["N", "T1", "T2"])
def scl_stats_kernel(
    p_z1,  # [N, T1, D]
    p_z2,  # [N, T2, D]
    p_v1,  # None, lengths [N] or mask [N, T1]
    p_v2,  # None, lengths [N] or mask [N, T2]
    p_planes,  # of scl_prepare_kernel; None: products read the frames
    p_stats,  # [6, N, padded(T1) + padded(T2)], some rows written by scl_prepare_kernel
    p_part,  # [2, 2, N, blocks]: losses and real rows of each block, per direction; PARTIAL:
    # [3, N, T1], see store_partial()
    p_loss,  # [N] or []
    p_coef,  # [2, N]: weights of the directions
    p_ticket,  # 0 before and after the launch
    p_more,  # of scl_more_kernel: additional terms of R, or None
    p_var,  # variance; None: rate and reach include it
    N,
    T1,
    T2,
    scale,  # log2(e) / temperature
    rate,  # log2(e) / (2 variance); log2(e) / sigma for other targets, 0 for a box
    reach,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PARTS: tl.constexpr,
    PLANES: tl.constexpr,
    ONLINE: tl.constexpr,
    TARGET: tl.constexpr,
    KL: tl.constexpr,
    REDUCTION: tl.constexpr,
    PARTIAL: tl.constexpr,  # the columns are some of a row's; direction 0 only
    MASK: tl.constexpr,
    PREC: tl.constexpr,
):
    DIRECTIONS: tl.constexpr = 1 if PARTIAL else 2
    scale = tl.cast(scale, tl.float32)
    rate, reach = spread(rate, reach, p_var, TARGET)
    blocks = tl.cdiv(padded(tl.maximum(T1, T2)), BM)  # rows of padding get statistics too
    i_b = tl.program_id(0) % blocks
    i_d = tl.program_id(0) // blocks % DIRECTIONS
    i_n = (tl.program_id(0) // blocks // DIRECTIONS).to(tl.int64)
    T_a, p_a, p_c, at_a, at_c, n_a, n_c, p_va, p_vc = sides(
        p_z1, p_z2, p_planes, p_v1, p_v2, i_n, i_d, T1, T2, D, DP, MASK
    )
    stride = tl.cast(N, tl.int64) * (padded(T1) + padded(T2))
    p_sa = p_stats + at_a
    p_sc = p_stats + at_c
    P_a = padded(T_a)
    row = i_b * BM
    o_m = row + tl.arange(0, BM)
    m_in = o_m < P_a
    m_m = valid(p_va, o_m, n_a, MASK)
    rows = tl.sum(m_m.to(tl.int32), 0)
    n_c = tl.where(rows > 0, n_c, 0)
    b_za = m_m
    if PLANES == 0:
        b_za = channels(p_a, row, m_m, 0, BM, BK, D, True)  # [BM, BK]
    b_xa = tl.load(p_sa + FACTOR * stride + o_m, mask=m_in, other=0.0)
    p_record = p_sa + RECORD * stride
    r1, r2, r3, b_ta = clock(p_sa + TIME * stride, p_record, row, o_m, P_a, BM)
    lo = tl.min(b_ta, 0)
    hi = tl.max(tl.where(b_ta < float("inf"), b_ta, float("-inf")), 0)
    first, end = near_range(p_sc + RECORD * stride, n_c, r1, r2, r3, lo, hi, reach)
    keep_range(p_record, row, P_a, first, end, BM)
    first, near, careful, plain, inside = tiles_of(first, end, n_c, BN)

    # What exponents are relative to: the largest one so far, or a constant that bounds them all.
    shift = scale * (0.0 if ONLINE else 1.0)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_ref = tl.zeros([BM], tl.float32) + shift
    b_r = tl.zeros([BM, PARTS], tl.float32)
    b_n = tl.zeros([BM, PARTS], tl.float32)
    b_p = tl.zeros([BM, PARTS], tl.float32)
    # Added to a Gaussian's exponents: with overlapping views the largest is then 0. A row whose
    # nearest frame is far away needs another offset, and a second pass over the tiles within reach
    # uses it. Offsets are whole numbers, so that these sums are exact. Other targets need neither.
    b_more = tl.zeros([BM], tl.float32) - 32.0
    turns = careful
    fresh = careful > 0
    while turns > 0:
        for k in range(0, turns):
            j = tile_index(k, first, near, n_c // BN, inside, True)
            m_n = j * BN + tl.arange(0, BN) < n_c
            if PLANES == 0:
                m_n = valid(p_vc, j * BN + tl.arange(0, BN), n_c, MASK)
            # Loaded before the product, which hides the latency.
            b_fc = of_columns(p_sc + FACTOR * stride, j, BN)
            b_tc = of_columns(p_sc + TIME * stride, j, BN)
            b_tc += since(p_sc + RECORD * stride, j * BN // UNIT, r1, r2, r3)
            b_s, _ = products(
                *(p_a, p_c, stride * DP, b_za, row, m_in if PLANES else m_m, j, m_n),
                *(D, DP, BM, BN, BK, PLANES, True, PREC),
            )
            b_x = b_s * (b_xa[:, None] * b_fc[None, :])
            b_e = b_x + tl.where(b_fc == 0, float("-inf"), -shift)[None, :]
            b_max, b_shift, b_r = denominators(b_e, b_max, b_r, ONLINE, PARTS)
            if ONLINE:
                b_p += (b_shift - b_ref)[:, None] * b_n
                b_ref = b_shift
            b_h = exponents(b_ta[:, None] - b_tc[None, :], rate, reach, TARGET)
            if TARGET == "gauss":
                b_h += b_more[:, None]
            b_w = tl.exp2(b_h)
            b_q = b_ref[:, None] - b_x
            if KL:
                b_q += b_h
            b_wq, b_w = two_partial_sums(b_w * b_q, b_w, PARTS)
            b_p += b_wq
            b_n += b_w
        if TARGET == "gauss":
            b_sum = tl.sum(b_n, 1)
            m_far = (b_xa != 0) & (b_sum < FAR)
            some = fresh & (tl.max(m_far.to(tl.int32), 0) > 0)
            turns = tl.where(some, careful, 0)
            fresh = careful < 0
            if some:
                b_far = tl.where(b_sum < FARTHEST, BEYOND, -32.0 - tl.floor(tl.log2(b_sum)))
                b_more = tl.where(m_far, b_far, -32.0)
                b_r = tl.zeros([BM, PARTS], tl.float32)
                b_n = tl.zeros([BM, PARTS], tl.float32)
                b_p = tl.zeros([BM, PARTS], tl.float32)
                if ONLINE:
                    b_max = tl.full([BM], float("-inf"), tl.float32)
                    b_ref = tl.zeros([BM], tl.float32)
        else:
            turns = careful * 0
    for k in range(0, plain):
        j = tile_index(k, first, near, n_c // BN, inside, False)
        m_n = j * BN + tl.arange(0, BN) < n_c
        if MASK and PLANES == 0:
            m_n = valid(p_vc, j * BN + tl.arange(0, BN), n_c, MASK)
        b_fc = of_columns(p_sc + FACTOR * stride, j, BN)
        b_s, _ = products(
            *(p_a, p_c, stride * DP, b_za, row, m_in if PLANES else m_m, j, m_n),
            *(D, DP, BM, BN, BK, PLANES, MASK, PREC),
        )
        b_e = b_s * (b_xa[:, None] * b_fc[None, :])
        if MASK:
            b_e += tl.where(b_fc == 0, float("-inf"), -shift)[None, :]
        else:
            b_e -= shift
        b_max, _, b_r = denominators(b_e, b_max, b_r, ONLINE, PARTS)

    b_r = tl.sum(b_r, 1)
    if p_more is not None:
        b_max, b_r = with_more(p_more + at_a + o_m, stride, m_m, b_max, b_r, ONLINE)
    b_n = tl.sum(b_n, 1)
    if PARTIAL:
        b_offset = b_more if TARGET == "gauss" else b_n * 0.0
        b_mean = b_ref - tl.sum(b_p, 1) / b_n
        if KL:
            b_mean += b_offset
        b_top = b_max if ONLINE else b_ref
        p_row = p_part + i_n * T_a + o_m
        store_partial(p_row, N, T_a, o_m < T_a, b_xa, b_top, b_r, b_n, b_offset, b_mean)
    else:
        # A row with no frame within reach: no loss, statistics that make its gradient exactly 0.
        m_row = (b_xa != 0) & (b_n > 0)
        b_loss = tl.sum(b_p, 1) / b_n + tl.log2(b_r)
        if ONLINE:
            b_loss += b_max - b_ref
        if KL:
            b_loss -= tl.log2(b_n)
        p_row = p_sa + o_m
        tl.store(p_row + R * stride, tl.where(m_row, 1.0 / b_r, 0.0), mask=m_in)
        if TARGET == "gauss":
            b_n *= tl.exp2(-b_more)  # in the scale of the gradient kernel
        tl.store(p_row + TARGETS * stride, tl.where(m_row, 1.0 / b_n, 0.0), mask=m_in)
        if ONLINE:
            tl.store(p_row + MAXIMUM * stride, tl.where(m_row, b_max, float("inf")), mask=m_in)
        p_block = p_part + (i_d * N + i_n) * blocks + i_b
        tl.store(p_block, tl.sum(tl.where(m_row, b_loss * LN2, 0.0), 0))
        tl.store(p_block + 2 * N * tl.cast(blocks, tl.int64), rows.to(tl.float32))
        if is_last(p_ticket):
            reduce(p_part, p_loss, p_coef, N, blocks, REDUCTION)


@triton.jit(do_not_specialize=["N", "T1", "T2", "sg", "first_direction", "directions"])
def scl_grad_kernel(
    p_z1,
    p_z2,
    p_v1,
    p_v2,
    p_planes,
    p_stats,
    p_coef,  # [2, N]
    p_grad,  # gradient of the loss, [N] with stride sg
    p_d1,  # [N, T1, D]
    p_d2,  # [N, T2, D]
    p_more,  # [N, T1 + T2, D]: additional terms of the gradients, or None
    p_tau,  # temperature; None: scale includes it
    p_var,
    p_along,  # [N, T1 + T2]: sum of a row's scores times their gradients, or None
    N,
    T1,
    T2,
    sg,
    first_direction,  # 0, or 1 when view 1 needs no gradient
    directions,
    scale,
    rate,
    reach,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PARTS: tl.constexpr,
    PLANES: tl.constexpr,
    NORM: tl.constexpr,
    ONLINE: tl.constexpr,
    TARGET: tl.constexpr,
    MASK: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = over(scale, p_tau)
    rate, reach = spread(rate, reach, p_var, TARGET)
    root = tl.sqrt(scale)
    FP16: tl.constexpr = p_z1.dtype.element_ty == tl.float16
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    blocks = tl.cdiv(tl.maximum(T1, T2), BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_d = first_direction + pid // blocks % directions
    i_n = (pid // blocks // directions).to(tl.int64)
    T_a, p_a, p_c, at_a, at_c, n_a, n_c, p_va, p_vc = sides(
        p_z1, p_z2, p_planes, p_v1, p_v2, i_n, i_d, T1, T2, D, DP, MASK
    )
    stride = tl.cast(N, tl.int64) * (padded(T1) + padded(T2))
    p_sa = p_stats + at_a
    p_sc = p_stats + at_c
    P_a = padded(T_a)
    row = i_b * BM
    o_m = row + tl.arange(0, BM)
    m_in = o_m < P_a
    m_m = valid(p_va, o_m, n_a, MASK)
    rows = tl.sum(m_m.to(tl.int32), 0)
    n_c = tl.where(rows > 0, n_c, 0)
    b_za = m_m
    if PLANES == 0:
        b_za = channels(p_a, row, m_m, 0, BM, BK, D, True)  # [BM, BK]
    p_record = p_sa + RECORD * stride
    r1, r2, r3, b_ta = clock(p_sa + TIME * stride, p_record, row, o_m, P_a, BM)
    first, end = kept_range(p_record, row, P_a, BM)
    first, near, careful, plain, inside = tiles_of(first, end, n_c, BN)

    # The two directions' weights relative to the larger one, which is applied at the end: p - w
    # times 1 / frames would underflow in fp16.
    upstream = tl.load(p_grad + i_n * sg)
    w_a = upstream * tl.load(p_coef + i_d * N + i_n)
    w_c = upstream * tl.load(p_coef + (1 - i_d) * N + i_n)
    weight = tl.maximum(tl.abs(w_a), tl.abs(w_c))
    w_a = tl.where(weight == 0, 0.0, w_a / weight)
    w_c = tl.where(weight == 0, 0.0, w_c / weight)

    b_ra = tl.load(p_sa + R * stride + o_m, mask=m_in, other=0.0) * w_a
    b_na = tl.load(p_sa + TARGETS * stride + o_m, mask=m_in, other=0.0) * w_a
    b_xa = tl.load(p_sa + FACTOR * stride + o_m, mask=m_in, other=0.0)
    b_ma = b_xa
    if ONLINE:
        b_ma = tl.load(p_sa + MAXIMUM * stride + o_m, mask=m_in, other=float("inf"))
    most = root
    if FP16 and NORM:
        most = largest(p_sc + RECORD * stride, n_c)
    # fp16 represents factors between the largest one and 1 / 2^14 of it.
    to_fp16 = FP16_SCALE / most

    b_acc = tl.zeros([BM, BD], tl.float32)
    b_along = tl.zeros([BM, PARTS], tl.float32)
    for CAREFUL in tl.static_range(1, -1, -1):
        for k in range(0, careful if CAREFUL else plain):
            j = tile_index(k, first, near, n_c // BN, inside, CAREFUL)
            m_n = j * BN + tl.arange(0, BN) < n_c
            if MASK and PLANES == 0:
                m_n = valid(p_vc, j * BN + tl.arange(0, BN), n_c, MASK)
            # A factor of 0 removes columns that are not real from everything that follows.
            b_fc = of_columns(p_sc + FACTOR * stride, j, BN)
            b_rc = of_columns(p_sc + R * stride, j, BN) * w_c
            b_s, b_zc = products(
                *(p_a, p_c, stride * DP, b_za, row, m_in if PLANES else m_m, j, m_n),
                *(D, DP, BM, BN, BK, PLANES, CAREFUL or MASK, PREC),
            )
            b_x = b_s * (b_xa[:, None] * b_fc[None, :])
            if ONLINE:
                b_mc = of_columns(p_sc + MAXIMUM * stride, j, BN)
                # A recomputed score may exceed its maximum by a rounding error.
                b_g = tl.exp2(tl.minimum(b_x - b_ma[:, None], 0.0)) * b_ra[:, None]
                b_g += tl.exp2(tl.minimum(b_x - b_mc[None, :], 0.0)) * b_rc[None, :]
            else:
                b_g = tl.exp2(b_x - scale) * (b_ra[:, None] + b_rc[None, :])

            if CAREFUL:
                b_nc = of_columns(p_sc + TARGETS * stride, j, BN) * w_c
                b_tc = of_columns(p_sc + TIME * stride, j, BN)
                b_tc += since(p_sc + RECORD * stride, j * BN // UNIT, r1, r2, r3)
                b_h = exponents(b_ta[:, None] - b_tc[None, :], rate, reach, TARGET)
                b_g -= tl.exp2(b_h) * (b_na[:, None] + b_nc[None, :])

            if (NORM or p_along is not None) and BD < D:  # otherwise from the sum, at the end
                b_along += partial_sums(b_g * b_x, PARTS)
            if FP16:
                b_fc = tl.minimum(b_fc, most) * to_fp16
            b_g *= b_fc[None, :]
            if PLANES == 0:
                if BK < D:
                    b_zc = channels(p_c, j * BN, m_n, chunk, BN, BD, D, CAREFUL or MASK)  # [BN, BD]
                b_acc = dot(b_g.to(b_zc.dtype), b_zc, b_acc, PREC)
            else:
                b_gh, b_gm, b_gl = split(b_g)
                b_ch = channels(p_c, j * BN, m_n, chunk, BN, BD, DP, False)
                b_cm = channels(p_c + stride * DP, j * BN, m_n, chunk, BN, BD, DP, False)
                b_cl = b_ch
                if PLANES == 3:
                    b_cl = channels(p_c + 2 * stride * DP, j * BN, m_n, chunk, BN, BD, DP, False)
                b_acc = add_product(b_gh, b_gm, b_gl, b_ch, b_cm, b_cl, b_acc, PLANES)

    if FP16:
        b_acc *= 1.0 / to_fp16
    p_own, _ = ordered(p_z1, p_z2, i_d)
    o_row = i_n * (T1 + T2) + tl.where(i_d == 0, 0, T1) + o_m
    if p_along is not None:
        b_gx = tl.sum(b_along, 1)
        if BD >= D:
            b_zd = channels(p_own + i_n * T_a * D, row, m_m, 0, BM, BD, D, True).to(tl.float32)
            b_gx = tl.sum(b_acc * b_zd, 1) * b_xa
        tl.store(p_along + o_row, b_gx * (weight * LN2), mask=(o_m < T_a) & (chunk == 0))
    if NORM:
        # d<z, zc>/dz of normalised z: remove the part along z, unless the norm was clamped.
        b_fa = b_xa / root
        b_zd = channels(p_own + i_n * T_a * D, row, m_m, chunk, BM, BD, D, True).to(tl.float32)
        if BD < D:
            b_along_z = tl.sum(b_along, 1) / root * b_fa
        else:
            b_along_z = tl.sum(b_acc * b_zd, 1) * b_fa * b_fa
        b_along_z = tl.where(b_fa < CLAMPED, b_along_z, 0.0)
        b_acc = (b_acc - b_zd * b_along_z[:, None]) * b_fa[:, None]
    # The factors of the columns include the root of the scale; scale * ln 2 = 1 / temperature.
    b_acc *= weight * root * LN2
    p_d, _ = ordered(p_d1, p_d2, i_d)
    o_k = chunk + tl.arange(0, BD)
    p_out = p_d + (i_n * T_a + o_m)[:, None] * D + o_k[None, :]
    m_out = (o_m < T_a)[:, None] & (o_k < D)[None, :]
    if p_more is not None:
        p_extra = p_more + o_row[:, None] * D + o_k[None, :]
        b_acc += tl.load(p_extra, mask=m_m[:, None] & m_out, other=0.0)
    tl.store(p_out, tl.where(m_m[:, None], b_acc, 0.0).to(p_d1.dtype.element_ty), mask=m_out)
