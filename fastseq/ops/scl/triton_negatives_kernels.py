"""The Triton kernels of ``negatives="video"`` and ``"batch"``: additional terms in the softmax of
each row, and their gradient.

One set of frames is both rows and columns: the two views of a video one after the other, with L1
and L - L1 places. The last places of a view may be empty, so that columns fill whole tiles. The
columns of a row are, for "video", the places of its own view; for "batch", those of all other
videos.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames, over, split
from fastseq.ops.scl.triton_sums import denominators, partial_sums
from fastseq.ops.scl.triton_tiles import (
    CLAMPED,
    FACTOR,
    FP16_SCALE,
    LN2,
    MAXIMUM,
    NORM_EPS,
    R,
    add_product,
    ordered,
    padded,
)


@triton.jit(do_not_specialize=["N", "T1", "T2", "L1", "L", "G", "sg"])
def scl_gather_kernel(
    p_z1,  # [N, T1, D]
    p_z2,  # [N, T2, D]
    p_stats,  # of scl_prepare_kernel; backward: of scl_stats_kernel
    p_coef,  # [2, N], or None in the forward, like the next two
    p_grad,  # gradient of the loss, [N] with stride sg
    p_top,  # [N]: the largest weight of a direction, over all videos whose gradients are added up
    p_z,  # [N L, P]: frames times a power of two close to 1 / norm; 0 where not real. fp32: bf16
    # planes one after the other, which add up to that
    p_x,  # [N, L]: sqrt(scale) times the rest of 1 / norm; 0 where not real
    p_y,  # [N, L]: - scale (online: 0); - infinity where not real. Backward [4, N, L]: weight / R;
    # weight / R times p_x; 1 / norm; online: the maximum
    p_tau,  # temperature; None: scale includes it
    N,
    T1,
    T2,
    L1,
    L,
    G,  # places of a plane
    sg,
    scale,  # log2(e) / temperature
    D: tl.constexpr,
    P: tl.constexpr,  # D and zeros up to a multiple of BK
    BM: tl.constexpr,
    BK: tl.constexpr,
    NORM: tl.constexpr,
    ONLINE: tl.constexpr,
    BATCH: tl.constexpr,
    PLANES: tl.constexpr,
):
    scale = over(scale, p_tau)
    root = tl.sqrt(scale)
    blocks = tl.cdiv(tl.maximum(L1, L - L1), BM)
    i_b = tl.program_id(0) % blocks
    i_d = tl.program_id(0) // blocks % 2
    i_n = (tl.program_id(0) // blocks // 2).to(tl.int64)
    p_a, _ = ordered(p_z1, p_z2, i_d)
    T_a, _ = ordered(T1, T2, i_d)
    p_a += i_n * T_a * D
    o_m = i_b * BM + tl.arange(0, BM)
    stride = tl.cast(N, tl.int64) * (padded(T1) + padded(T2))
    p_s = p_stats + i_n * (padded(T1) + padded(T2)) + tl.where(i_d == 0, 0, padded(T1)) + o_m
    m_m = tl.load(p_s + FACTOR * stride, mask=o_m < T_a, other=0.0) != 0  # NaN: a real frame
    b_inv = tl.full([BM], 1.0, tl.float32)
    b_pow = b_inv
    if NORM:
        b_sq = tl.zeros([BM], tl.float32)
        for k in range(0, P, BK):
            b_zk = frames(p_a, o_m, m_m, k, D, BK).to(tl.float32)
            b_sq += tl.sum(b_zk * b_zk, 1)
        b_inv = 1.0 / tl.maximum(tl.sqrt(b_sq), NORM_EPS)
        # Exact, and all later numbers are then of order 1 for embeddings of any size, as fp16 needs
        b_pow = (b_inv.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)

    o_p = i_n * L + tl.where(i_d == 0, 0, L1) + o_m
    m_in = o_m < tl.where(i_d == 0, L1, L - L1)
    for k in range(0, P, BK):
        b_zk = frames(p_a, o_m, m_m, k, D, BK).to(tl.float32) * b_pow[:, None]
        b_zk = tl.where(m_m[:, None], b_zk, 0.0)
        p_out = p_z + o_p[:, None] * P + (k + tl.arange(0, BK))[None, :]
        if PLANES == 0:
            tl.store(p_out, b_zk.to(p_z.dtype.element_ty), mask=m_in[:, None])
        else:
            b_zh, b_zm, b_zl = split(b_zk)
            tl.store(p_out, b_zh, mask=m_in[:, None])
            tl.store(p_out + tl.cast(G, tl.int64) * P, b_zm, mask=m_in[:, None])
            if PLANES == 3:
                tl.store(p_out + 2 * tl.cast(G, tl.int64) * P, b_zl, mask=m_in[:, None])
    b_x = tl.where(m_m, tl.where(b_pow == 0, 0.0, b_inv / b_pow) * root, 0.0)
    tl.store(p_x + o_p, b_x, mask=m_in)
    if p_grad is None:
        tl.store(p_y + o_p, tl.where(m_m, 0.0 if ONLINE else -scale, float("-inf")), mask=m_in)
    else:
        # Weights relative to the largest, which is applied at the end: p times 1 / frames would
        # underflow in fp16.
        if BATCH:
            BV: tl.constexpr = 128
            b_top = tl.zeros([BV], tl.float32)
            for v in range(0, N, BV):
                b_v = largest_weight(p_coef, p_grad, v + tl.arange(0, BV), N, sg)
                b_top = tl.maximum(b_top, b_v)
        else:
            b_top = largest_weight(p_coef, p_grad, i_n + tl.arange(0, 1), N, sg)
        top = tl.max(b_top, 0)
        if (i_b == 0) & (i_d == 0):
            tl.store(p_top + i_n, top)
        weight = tl.load(p_grad + i_n * sg) * tl.load(p_coef + i_d * N + i_n)
        weight = tl.where(weight == 0, 0.0, weight / top) / root
        if p_z.dtype.element_ty == tl.float16:
            weight *= FP16_SCALE
        b_r = tl.where(m_m, tl.load(p_s + R * stride, mask=m_m, other=0.0) * weight, 0.0)
        every = tl.cast(N, tl.int64) * L
        tl.store(p_y + o_p, b_r, mask=m_in)
        tl.store(p_y + every + o_p, b_r * b_x, mask=m_in)
        tl.store(p_y + 2 * every + o_p, b_inv, mask=m_in)
        if ONLINE:
            b_max = tl.load(p_s + MAXIMUM * stride, mask=m_m, other=float("inf"))
            tl.store(p_y + 3 * every + o_p, b_max, mask=m_in)


@triton.jit
def largest_weight(p_coef, p_grad, o_v, N, sg):
    """The larger weight of the two directions of the videos o_v, times the gradient of the loss."""
    m_v = o_v < N
    b_w = tl.abs(tl.load(p_coef + o_v, mask=m_v, other=0.0))
    b_w = tl.maximum(b_w, tl.abs(tl.load(p_coef + N + o_v, mask=m_v, other=0.0)))
    return b_w * tl.abs(tl.load(p_grad + o_v * sg, mask=m_v, other=0.0))


@triton.jit
def block_of(first, T_a):
    """First row of a program. A program without rows, since its view is the shorter one, reads the
    first rows instead: memory ends soon after the last view."""
    return tl.where(first < T_a, first, 0)


@triton.jit
def places(p_z, first, k, P: tl.constexpr, B: tl.constexpr, BK: tl.constexpr):
    """Channels k to k + BK of B places from ``first`` on."""
    p_tile = p_z + (first * P + k)
    return tl.load(p_tile + (tl.arange(0, B)[:, None] * P + tl.arange(0, BK)[None, :]))


@triton.jit
def columns(i_n, i_d, N, L1, L, BN: tl.constexpr, BATCH: tl.constexpr):
    """First column, number of tiles up to the gap, number of tiles, and the gap."""
    if BATCH:
        begin = i_n * 0
        before = (i_n * L // BN).to(tl.int32)
        tiles = (N - 1) * (L // BN)
        gap = L
    else:
        begin = i_n * L + tl.where(i_d == 0, 0, L1)
        tiles = tl.where(i_d == 0, L1, L - L1) // BN
        before = tiles
        gap = 0
    return begin, before, tiles, gap


@triton.jit
def planes(
    p_z, first, k, G, P: tl.constexpr, B: tl.constexpr, BK: tl.constexpr, PLANES: tl.constexpr
):
    """``places`` of each plane; with two planes the last one is returned twice."""
    plane = tl.cast(G, tl.int64) * P
    b_h = places(p_z, first, k, P, B, BK)
    b_m = places(p_z + plane, first, k, P, B, BK)
    return b_h, b_m, (places(p_z + 2 * plane, first, k, P, B, BK) if PLANES == 3 else b_m)


@triton.jit
def add_channels(
    p_z, row, first, k, G, b_s, P: tl.constexpr, BK: tl.constexpr, PLANES: tl.constexpr
):
    b_ah, b_am, b_al = planes(p_z, row, k, G, P, b_s.shape[0], BK, PLANES)
    b_ch, b_cm, b_cl = planes(p_z, first, k, G, P, b_s.shape[1], BK, PLANES)
    b_ch, b_cm, b_cl = tl.trans(b_ch), tl.trans(b_cm), tl.trans(b_cl)
    return add_product(b_ah, b_am, b_al, b_ch, b_cm, b_cl, b_s, PLANES)


@triton.jit
def products(
    p_z,
    b_za,
    row,
    first,
    G,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PLANES: tl.constexpr,
    UNROLL: tl.constexpr,  # the steps over the channels of PLANES: rows then stay in place
):
    """<row, column> of a tile, BK channels at a time, and the columns' first channels."""
    b_s = tl.zeros([BM, BN], tl.float32)
    b_zc = b_za
    if PLANES == 0:
        b_zc = places(p_z, first, 0, P, BN, BK)
        b_s = dot(b_za, tl.trans(b_zc), b_s, "tf32")
        for k in range(BK, P, BK):
            b_zk = places(p_z, first, k, P, BN, BK)
            b_s = dot(places(p_z, row, k, P, BM, BK), tl.trans(b_zk), b_s, "tf32")
    else:
        if UNROLL:
            for k in tl.static_range(0, P, BK):
                b_s = add_channels(p_z, row, first, k, G, b_s, P, BK, PLANES)
        else:
            for k in range(0, P, BK):
                b_s = add_channels(p_z, row, first, k, G, b_s, P, BK, PLANES)
    return b_s, b_zc


@triton.jit(do_not_specialize=["N", "T1", "T2", "L1", "L", "G"])
def scl_more_kernel(
    p_z,  # frames written by scl_gather_kernel
    p_x,
    p_y,
    p_more,  # [1 or 2, N, padded(T1) + padded(T2)]: sums of exponentials, online the maxima
    N,
    T1,
    T2,
    L1,
    L,
    G,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ONLINE: tl.constexpr,
    BATCH: tl.constexpr,
    PLANES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The additional terms of the softmax denominators."""
    blocks = tl.cdiv(tl.maximum(T1, T2), BM)
    i_b = tl.program_id(0) % blocks
    i_d = tl.program_id(0) // blocks % 2
    i_n = (tl.program_id(0) // blocks // 2).to(tl.int64)
    T_a = tl.where(i_d == 0, T1, T2)
    row = i_n * L + tl.where(i_d == 0, 0, L1) + block_of(i_b * BM, T_a)
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < T_a
    b_xa = tl.load(p_x + row + tl.arange(0, BM), mask=m_m, other=0.0)
    begin, before, tiles, gap = columns(i_n, i_d, N, L1, L, BN, BATCH)
    b_ya = tl.load(p_y + row + tl.arange(0, BM), mask=m_m, other=float("-inf"))
    tiles = tl.where(tl.max(b_ya, 0) == float("-inf"), 0, tiles)  # no row is real
    b_za = places(p_z, row, 0, P, BM, BK)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_r = tl.zeros([BM, 8], tl.float32)
    for j in range(0, tiles):
        first = tl.multiple_of(begin + j * BN + tl.where(j < before, 0, gap), BN)
        o_n = first + tl.arange(0, BN)
        b_xc = tl.load(p_x + o_n)
        b_yc = tl.load(p_y + o_n)
        b_s, _ = products(p_z, b_za, row, first, G, P, BM, BN, BK, PLANES, UNROLL)
        b_e = b_s * (b_xa[:, None] * b_xc[None, :]) + b_yc[None, :]
        b_max, _, b_r = denominators(b_e, b_max, b_r, ONLINE, 8)
    kept = padded(T1) + padded(T2)
    p_out = p_more + i_n * kept + tl.where(i_d == 0, 0, padded(T1)) + o_m
    tl.store(p_out, tl.sum(b_r, 1), mask=m_m)
    if ONLINE:
        tl.store(p_out + tl.cast(N, tl.int64) * kept, b_max, mask=m_m)


@triton.jit(do_not_specialize=["N", "T1", "T2", "L1", "L", "G", "first_direction", "directions"])
def scl_more_grad_kernel(
    p_z,  # frames written by scl_gather_kernel
    p_x,
    p_y,
    p_top,
    p_more,  # [N, T1 + T2, D]
    p_tau,
    p_along,  # [N, T1 + T2]: sum of a row's scores times their gradients, or None
    N,
    T1,
    T2,
    L1,
    L,
    G,
    first_direction,  # 0, or 1 when view 1 needs no gradient
    directions,
    scale,
    D: tl.constexpr,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
    ONLINE: tl.constexpr,
    BATCH: tl.constexpr,
    PLANES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The gradient through the additional columns; a frame is a row, and a column of others."""
    scale = over(scale, p_tau)
    CHUNKS: tl.constexpr = P // BD
    blocks = tl.cdiv(tl.maximum(T1, T2), BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_d = first_direction + pid // blocks % directions
    i_n = (pid // blocks // directions).to(tl.int64)
    T_a = tl.where(i_d == 0, T1, T2)
    row = i_n * L + tl.where(i_d == 0, 0, L1) + block_of(i_b * BM, T_a)
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < T_a
    stride = tl.cast(N, tl.int64) * L
    p_row = p_y + row + tl.arange(0, BM)
    b_xa = tl.load(p_x + row + tl.arange(0, BM), mask=m_m, other=0.0)
    b_ra = tl.load(p_row, mask=m_m, other=0.0)
    if ONLINE:
        b_ma = tl.load(p_row + 3 * stride, mask=m_m, other=float("inf"))
    begin, before, tiles, gap = columns(i_n, i_d, N, L1, L, BN, BATCH)
    tiles = tl.where(tl.sum((b_xa != 0).to(tl.int32), 0) > 0, tiles, 0)
    b_za = places(p_z, row, 0, P, BM, BK)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_along = tl.zeros([BM, 8], tl.float32)
    for j in range(0, tiles):
        first = tl.multiple_of(begin + j * BN + tl.where(j < before, 0, gap), BN)
        o_n = first + tl.arange(0, BN)
        b_xc = tl.load(p_x + o_n)
        b_rc = tl.load(p_y + stride + o_n)
        b_s, b_zc = products(p_z, b_za, row, first, G, P, BM, BN, BK, PLANES, UNROLL)
        b_e = b_s * (b_xa[:, None] * b_xc[None, :])
        b_w = b_ra[:, None] * b_xc[None, :]
        if ONLINE:
            # A recomputed score may exceed its maximum by a rounding error.
            b_mc = tl.load(p_y + 3 * stride + o_n)
            b_g = tl.exp2(tl.minimum(b_e - b_ma[:, None], 0.0)) * b_w
            b_g += tl.exp2(tl.minimum(b_e - b_mc[None, :], 0.0)) * b_rc[None, :]
        else:
            b_g = tl.exp2(b_e - scale) * (b_w + b_rc[None, :])
        if PLANES == 0:
            b_g = b_g.to(b_za.dtype)
        if (NORM or p_along is not None) and CHUNKS > 1:
            b_along += partial_sums(b_g.to(tl.float32) * b_s, 8)
        if PLANES == 0:
            if BK < P:
                b_zc = places(p_z, first, chunk, P, BN, BD)
            b_acc = dot(b_g, b_zc, b_acc, "tf32")
        else:
            b_gh, b_gm, b_gl = split(b_g)
            b_ch, b_cm, b_cl = planes(p_z, first, chunk, G, P, BN, BD, PLANES)
            b_acc = add_product(b_gh, b_gm, b_gl, b_ch, b_cm, b_cl, b_acc, PLANES)

    top = tl.load(p_top + i_n)
    if p_z.dtype.element_ty == tl.float16:
        top *= 1.0 / FP16_SCALE
    o_row = i_n * (T1 + T2) + tl.where(i_d == 0, 0, T1) + o_m
    if NORM or p_along is not None:
        b_zd = places(p_z, row, chunk, P, BM, BD).to(tl.float32)
        if PLANES > 0:
            _, b_zm, b_zl = planes(p_z, row, chunk, G, P, BM, BD, PLANES)
            b_zd += b_zm.to(tl.float32)
            if PLANES == 3:
                b_zd += b_zl.to(tl.float32)
        b_proj = tl.sum(b_acc * b_zd if CHUNKS == 1 else b_along, 1)
        if p_along is not None:
            b_gx = b_proj * b_xa * (tl.sqrt(scale) * LN2 * top)
            tl.store(p_along + o_row, b_gx, mask=m_m & (chunk == 0))
    if NORM:
        # d<z, zc>/dz of normalised z: remove the part along z, unless the norm was clamped. It is
        # computed from the rounded sum: with "video" most of that sum is along the frame itself.
        b_inv = tl.load(p_row + 2 * stride, mask=m_m, other=0.0)
        b_proj = tl.where(b_inv < CLAMPED, b_proj * b_xa * b_xa / scale, 0.0)
        b_acc = (b_acc - b_zd * b_proj[:, None]) * b_inv[:, None]
    o_k = chunk + tl.arange(0, BD)
    p_out = p_more + o_row[:, None] * D + o_k[None, :]
    factor = top * scale * LN2  # scale * ln 2 = 1 / temperature
    tl.store(p_out, b_acc * factor, mask=m_m[:, None] & (o_k < D)[None, :])
