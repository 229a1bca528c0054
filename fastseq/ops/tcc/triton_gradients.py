"""The Triton kernel of tcc_loss's gradients. Constants and numbering as in triton_cycles.py."""

import triton
import triton.language as tl

from fastseq.ops.tcc.triton_cycles import cycle
from fastseq.ops.tcc.triton_tiles import (
    LN2,
    LSE_V,
    SPAN,
    accumulate,
    chunks,
    chunks_of,
    cut,
    hop,
    labels,
    row_of,
    scores,
    slopes,
    split,
    tile,
    whole,
    zeros,
)


@triton.jit
def nearest(p_row, p_level, i_h, o_t, hops, T, CHUNKS: tl.constexpr):
    """Log-sum-exps of the cycles' first softmax, and the mean under it of its gradient."""
    b_lse = tl.load(row_of(p_row, LSE_V, i_h, hops, T) + o_t)
    b_level = tl.load(row_of(p_level, 0, i_h, hops, T) + o_t)
    for c in tl.static_range(1, CHUNKS):
        b_level += tl.load(row_of(p_level, c, i_h, hops, T) + o_t)
    return b_lse, b_level


@triton.jit
def as_keys(
    m,
    p_z,
    p_bias,
    p_t,
    p_len,
    p_nn,
    p_row,
    i_m,
    i_g,
    begin,
    chunk,
    M,
    T,
    first,
    hops,
    scale,
    smoothing,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    TYPE: tl.constexpr,
    PC: tl.constexpr,
):
    """Out, as keys: the cycles of all frames end here."""
    FRESH: tl.constexpr = PC == 3
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    i_h = tl.cast(i_g, tl.int64) * M + i_m
    n_u = hop(p_len, i_m, (i_m + first + i_g) % M)[0]
    p_m = p_z + i_m * size
    p_h = p_nn + i_h * size
    o_m = begin + tl.arange(0, BM)
    b_bm = tl.load(p_bias + i_m * T + o_m)
    b_tm = tl.load(p_t + i_m * T + o_m)
    acc = zeros(BD // BK, BM, BK)
    b_sum = tl.zeros([BM], tl.float32)
    for i in range(0, tl.where(begin < n_u, n_u, 0), BN):
        o_n = i + tl.arange(0, BN)
        b_tn, b_lse, b_e, b_a, b_b, b_c = cycle(p_t + i_m * T, p_row, i_h, o_n, hops, T, TYPE)
        nn = chunks(p_h, plane_h, i, 0, len(m), PC, D, BN, BK)
        b_s = scores(m, p_m, plane_z, begin, nn, p_h, plane_h, i, PC, D, BM, BN, BK, FRESH)
        b_x = b_s * scale + b_bm[:, None] - b_lse[None, :]
        b_d = b_tm[:, None] - b_tn[None, :] - b_e[None, :]
        b_w, b_y, b_z = b_a[None, :], b_b[None, :], b_c[None, :]
        b_label = labels(o_m, o_n, smoothing, n_u, TYPE)
        dl, b_cut = cut(slopes(b_x, b_d, b_w, b_y, b_z, b_label, TYPE), PC)
        b_sum += tl.sum(b_cut, 1)
        nn = chunks_of(nn, p_h, plane_h, i, chunk, D, BN, BK, BD)
        acc = accumulate(acc, dl, nn, PC, FRESH)
    return acc, b_sum


@triton.jit
def as_queries(
    m,
    p_z,
    p_bias,
    p_len,
    p_row,
    p_pull,
    p_level,
    i_m,
    i_g,
    begin,
    chunk,
    M,
    T,
    first,
    hops,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNKS: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    """Out, as queries: these frames' cycles pass through v."""
    FRESH: tl.constexpr = PC == 3
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    i_h = tl.cast(i_g, tl.int64) * M + i_m
    i_v = (i_m + first + i_g) % M
    n_u, n_v = hop(p_len, i_m, i_v)
    p_m = p_z + i_m * size
    p_v = p_z + i_v * size
    p_q = p_pull + i_h * size
    b_lse, b_level = nearest(p_row, p_level, i_h, begin + tl.arange(0, BM), hops, T, CHUNKS)
    factor = scale * LN2
    b_level *= factor
    q = chunks(p_q, plane_h, begin, 0, len(m), PC, D, BM, BK)
    acc = zeros(BD // BK, BM, BK)
    b_sum = tl.zeros([BM], tl.float32)
    for j in range(0, tl.where(begin < n_u, n_v, 0), BN):
        v = chunks(p_v, plane_z, j, 0, len(m), len(m[0]), D, BN, BK)
        b_bias = tl.load(p_bias + i_v * T + j + tl.arange(0, BN))
        b_s = scores(m, p_m, plane_z, begin, v, p_v, plane_z, j, ZZ, D, BM, BN, BK, FRESH)
        b_r = scores(q, p_q, plane_h, begin, v, p_v, plane_z, j, PC, D, BM, BN, BK, FRESH)
        b_p = tl.exp2(b_s * scale + b_bias[None, :] - b_lse[:, None])
        ds, b_cut = cut(b_p * (b_r * factor - b_level[:, None]), PC)
        b_sum += tl.sum(b_cut, 1)
        v = chunks_of(v, p_v, plane_z, j, chunk, D, BN, BK, BD)
        acc = accumulate(acc, ds, v, PC, FRESH)
    return acc, b_sum


@triton.jit
def passed_through(
    m,
    p_z,
    p_bias,
    p_len,
    p_row,
    p_pull,
    p_level,
    i_m,
    i_g,
    begin,
    chunk,
    M,
    T,
    first,
    hops,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNKS: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    """In: another sequence's cycles pass through these frames."""
    FRESH: tl.constexpr = PC == 3
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    i_u = (i_m + M - first - i_g) % M
    i_h = tl.cast(i_g, tl.int64) * M + i_u
    n_m = tl.load(p_len + i_m)
    p_m = p_z + i_m * size
    p_u = p_z + i_u * size
    p_q = p_pull + i_h * size
    b_bm = tl.load(p_bias + i_m * T + begin + tl.arange(0, BM))
    factor = scale * LN2
    acc = zeros(BD // BK, BM, BK)
    b_sum = tl.zeros([BM], tl.float32)
    for i in range(0, tl.where(begin < n_m, tl.load(p_len + i_u), 0), BN):
        b_lse, b_level = nearest(p_row, p_level, i_h, i + tl.arange(0, BN), hops, T, CHUNKS)
        u = chunks(p_u, plane_z, i, 0, len(m), len(m[0]), D, BN, BK)
        q = chunks(p_q, plane_h, i, 0, len(m), PC, D, BN, BK)
        b_s = scores(m, p_m, plane_z, begin, u, p_u, plane_z, i, ZZ, D, BM, BN, BK, FRESH)
        b_r = scores(m, p_m, plane_z, begin, q, p_q, plane_h, i, PC, D, BM, BN, BK, FRESH)
        b_p = tl.exp2(b_s * scale + b_bm[:, None] - b_lse[None, :])
        ds, b_cut = cut(b_p * (b_r * factor - (b_level * factor)[None, :]), PC)
        b_sum += tl.sum(b_cut, 1)
        u = chunks_of(u, p_u, plane_z, i, chunk, D, BN, BK, BD)
        acc = accumulate(acc, ds, u, PC, FRESH)
        q = chunks_of(q, p_q, plane_h, i, chunk, D, BN, BK, BD)
        acc = accumulate(acc, split(b_p, PC), q, PC, FRESH)
    return acc, b_sum


@triton.jit
def leave(
    p_z,
    p_out,
    acc,
    b_sum,
    i_m,
    begin,
    chunk,
    M,
    T,
    more,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PZ: tl.constexpr,
    L2: tl.constexpr,
):
    """Store a walk's gradient, or with ``more`` add it to what is there."""
    size = tl.cast(T, tl.int64) * D
    o_tile = tl.arange(0, BM)[:, None] * D + tl.arange(0, BK)[None, :]
    for k in tl.static_range(len(acc)):
        b_out = acc[k]
        if L2:
            b_z = whole(tile(p_z + i_m * size, M * size, begin, chunk + k * BK, PZ, D, BM, BK))
            b_out -= b_sum[:, None] * b_z
        p_tile = p_out + tl.cast(begin, tl.int64) * D + chunk + k * BK + o_tile
        if more:
            b_out += tl.load(p_tile)
        tl.store(p_tile, b_out)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops", "add"])
def tcc_grad_kernel(
    p_z,
    p_bias,
    p_t,
    p_len,
    p_nn,
    p_row,
    p_pull,
    p_level,
    p_grads,  # [3, M, T, D]: of each walk, over the scale of scores
    M,
    spans,
    first,
    hops,
    add,  # 0, or 1 to add to the gradients of earlier hops
    scale,
    smoothing,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    WALK: tl.constexpr,
    CHUNKS: tl.constexpr,  # of p_level
    L2: tl.constexpr,
    TYPE: tl.constexpr,
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    i_m = (pid // blocks).to(tl.int64)
    p_m = p_z + i_m * size
    p_out = p_grads + (tl.cast(M, tl.int64) * WALK + i_m) * size
    KEPT: tl.constexpr = D // BK if BD == D else 1
    m = chunks(p_m, M * size, begin, 0, KEPT, PZ, D, BM, BK)

    for i_g in range(0, hops // M):
        if WALK == 0:
            acc, b_sum = passed_through(
                *(m, p_z, p_bias, p_len, p_row, p_pull, p_level, i_m, i_g, begin, chunk, M, T),
                *(first, hops, scale, D, BM, BN, BK, BD, CHUNKS, PC, ZZ),
            )
            leave(p_z, p_out, acc, b_sum, i_m, begin, chunk, M, T, i_g + add > 0, D, BM, BK, PZ, L2)
        elif WALK == 1:
            acc, b_sum = as_queries(
                *(m, p_z, p_bias, p_len, p_row, p_pull, p_level, i_m, i_g, begin, chunk, M, T),
                *(first, hops, scale, D, BM, BN, BK, BD, CHUNKS, PC, ZZ),
            )
            leave(p_z, p_out, acc, b_sum, i_m, begin, chunk, M, T, i_g + add > 0, D, BM, BK, PZ, L2)
        else:
            acc, b_sum = as_keys(
                *(m, p_z, p_bias, p_t, p_len, p_nn, p_row, i_m, i_g, begin, chunk, M, T),
                *(first, hops, scale, smoothing, D, BM, BN, BK, BD, TYPE, PC),
            )
            leave(p_z, p_out, acc, b_sum, i_m, begin, chunk, M, T, i_g + add > 0, D, BM, BK, PZ, L2)


@triton.jit(do_not_specialize=["N", "M", "spans", "T1", "T2"])
def tcc_finish_kernel(
    p_grads,
    p_len,
    p_dx,  # [N, T1, CHANNELS] fp32
    p_dy,  # [N, T2, CHANNELS] fp32
    N,
    M,
    spans,
    T1,
    T2,
    scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradients of x and y: the sum of the walks'."""
    T = spans * SPAN
    blocks = T // BT
    begin = tl.program_id(0) % blocks * BT
    i_m = (tl.program_id(0) // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    p_out = p_dx + i_m * T1 * CHANNELS
    T_m = T1
    if i_m >= N:
        p_out = p_dy + (i_m - N) * T2 * CHANNELS
        T_m = T2
    o_m = (begin + tl.arange(0, BT))[:, None]
    factor = tl.cast(scale, tl.float32) * LN2
    walk = tl.cast(M, tl.int64) * T * D
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)[None, :]
        p_tile = p_grads + (i_m * T + o_m) * D + o_k
        m_tile = o_m < n_m  # others have not been written
        b_out = tl.load(p_tile, mask=m_tile, other=0.0)
        b_out += tl.load(p_tile + walk, mask=m_tile, other=0.0)
        b_out += tl.load(p_tile + 2 * walk, mask=m_tile, other=0.0)
        p_tile = p_out + o_m.to(tl.int64) * CHANNELS + o_k
        tl.store(p_tile, b_out * factor, mask=(o_m < T_m) & (o_k < CHANNELS))
