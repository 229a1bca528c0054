"""The Triton kernels of tcc_loss's gradients. Constants and numbering as in triton_cycles.py.

The gradient of the frames of a sequence m is a sum over three walks, each in a separate kernel.
Each kernel then has tiles chosen for it, and all registers for one accumulator. A launch processes
a group of shifts, one after the other, and starts from the sums of the launch before: the bits are
the same in groups of any size.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import over
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
)


@triton.jit
def nearest(p_row, p_level, i_h, o_t, hops, T, CHUNKS: tl.constexpr):
    """Log-sum-exps of the cycles' first softmax, and the mean of its gradient under it."""
    b_lse = tl.load(row_of(p_row, LSE_V, i_h, hops, T) + o_t)
    b_level = tl.load(row_of(p_level, 0, i_h, hops, T) + o_t)
    for c in tl.static_range(1, CHUNKS):
        b_level += tl.load(row_of(p_level, c, i_h, hops, T) + o_t)
    return b_lse, b_level


@triton.jit
def earlier(
    p_out,
    p_rest,
    begin,
    chunk,
    add,
    N: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Sums stored by leave() in earlier launches: N chunks of weighted columns, and the sum of the
    weights."""
    o_tile = tl.arange(0, BM)[:, None] * D + tl.arange(0, BK)[None, :]
    p_tile = p_out + tl.cast(begin, tl.int64) * D + chunk + o_tile
    acc = (tl.load(p_tile, mask=add > 0, other=0.0),)
    for k in tl.static_range(1, N):
        acc += (tl.load(p_tile + k * BK, mask=add > 0, other=0.0),)
    return acc, tl.load(p_rest + begin + tl.arange(0, BM), mask=add > 0, other=0.0)


@triton.jit
def leave(p_out, p_rest, begin, chunk, acc, b_sum, D: tl.constexpr):
    BM: tl.constexpr = acc[0].shape[0]
    BK: tl.constexpr = acc[0].shape[1]
    o_tile = tl.arange(0, BM)[:, None] * D + tl.arange(0, BK)[None, :]
    p_tile = p_out + tl.cast(begin, tl.int64) * D + chunk + o_tile
    for k in tl.static_range(len(acc)):
        tl.store(p_tile + k * BK, acc[k])
    if chunk == 0:
        tl.store(p_rest + begin + tl.arange(0, BM), b_sum)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops", "add"])
def tcc_keys_kernel(
    p_z,
    p_bias,
    p_t,
    p_len,
    p_tau,
    p_nn,
    p_row,
    p_sum,  # [M, T, D]: gradients / scale of the scores, without the frames' own part
    p_rest,  # [M, T]: factor of the frames' own part
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
    TYPE: tl.constexpr,
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    """Out, as keys: the cycles of all frames of the sequence end at these frames."""
    scale = over(scale, p_tau)
    smoothing = tl.cast(smoothing, tl.float32)
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    o_m = begin + tl.arange(0, BM)
    i_m = (pid // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    p_m = p_z + i_m * size
    m = chunks(p_m, plane_z, begin, 0, KEPT, PZ, D, BM, BK)
    b_bm = tl.load(p_bias + i_m * T + o_m)
    b_tm = tl.load(p_t + i_m * T + o_m)
    p_sum += i_m * size
    p_rest += i_m * T
    acc, b_sum = earlier(p_sum, p_rest, begin, chunk, add, BD // BK, D, BM, BK)
    for i_g in range(0, hops // M):
        i_h = tl.cast(i_g, tl.int64) * M + i_m
        n_u = hop(p_len, i_m, (i_m + first + i_g) % M)[0]
        p_h = p_nn + i_h * size
        for i in range(0, tl.where(begin < n_m, n_u, 0), BN):
            o_n = i + tl.arange(0, BN)
            b_tn, b_lse, b_e, b_a, b_b, b_c = cycle(p_t + i_m * T, p_row, i_h, o_n, hops, T, TYPE)
            nn = chunks(p_h, plane_h, i, 0, KEPT, PC, D, BN, BK)
            b_s = scores(m, p_m, plane_z, begin, nn, p_h, plane_h, i, PC, D, BM, BN, BK, FRESH)
            b_x = b_s * scale + b_bm[:, None] - b_lse[None, :]
            b_d = b_tm[:, None] - b_tn[None, :] - b_e[None, :]
            b_w, b_y, b_z = b_a[None, :], b_b[None, :], b_c[None, :]
            b_label = labels(o_m, o_n, smoothing, n_u, TYPE)
            dl, b_cut = cut(slopes(b_x, b_d, b_w, b_y, b_z, b_label, TYPE), PC)
            b_sum += tl.sum(b_cut, 1)
            nn = chunks_of(nn, p_h, plane_h, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, dl, nn, PC, FRESH)
    leave(p_sum, p_rest, begin, chunk, acc, b_sum, D)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops", "add"])
def tcc_queries_kernel(
    p_z,
    p_bias,
    p_len,
    p_tau,
    p_row,
    p_pull,
    p_level,
    p_sum,
    p_rest,
    M,
    spans,
    first,
    hops,
    add,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNKS: tl.constexpr,  # chunks of p_level
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    """Out, as queries: the cycles of these frames pass through v."""
    scale = over(scale, p_tau)
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    o_m = begin + tl.arange(0, BM)
    i_m = (pid // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    p_m = p_z + i_m * size
    m = chunks(p_m, plane_z, begin, 0, KEPT, PZ, D, BM, BK)
    factor = scale * LN2
    p_sum += i_m * size
    p_rest += i_m * T
    acc, b_sum = earlier(p_sum, p_rest, begin, chunk, add, BD // BK, D, BM, BK)
    for i_g in range(0, hops // M):
        i_v = (i_m + first + i_g) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_m
        n_v = tl.load(p_len + i_v)
        p_v = p_z + i_v * size
        p_q = p_pull + i_h * size
        b_lse, b_level = nearest(p_row, p_level, i_h, o_m, hops, T, CHUNKS)
        b_level *= factor
        q = chunks(p_q, plane_h, begin, 0, KEPT, PC, D, BM, BK)
        for j in range(0, tl.where(begin < n_m, n_v, 0), BN):
            v = chunks(p_v, plane_z, j, 0, KEPT, PZ, D, BN, BK)
            b_bias = tl.load(p_bias + i_v * T + j + tl.arange(0, BN))
            b_s = scores(m, p_m, plane_z, begin, v, p_v, plane_z, j, ZZ, D, BM, BN, BK, FRESH)
            b_r = scores(q, p_q, plane_h, begin, v, p_v, plane_z, j, PC, D, BM, BN, BK, FRESH)
            b_p = tl.exp2(b_s * scale + b_bias[None, :] - b_lse[:, None])
            ds, b_cut = cut(b_p * (b_r * factor - b_level[:, None]), PC)
            b_sum += tl.sum(b_cut, 1)
            v = chunks_of(v, p_v, plane_z, j, chunk, D, BN, BK, BD)
            acc = accumulate(acc, ds, v, PC, FRESH)
    leave(p_sum, p_rest, begin, chunk, acc, b_sum, D)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops", "add"])
def tcc_through_kernel(
    p_z,
    p_bias,
    p_len,
    p_tau,
    p_row,
    p_pull,
    p_level,
    p_sum,
    p_rest,
    M,
    spans,
    first,
    hops,
    add,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNKS: tl.constexpr,  # chunks of p_level
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
    CONVERT: tl.constexpr,  # Triton 3.7 does not compile top()'s bits for sm_100
):
    """In: the cycles of another sequence pass through these frames."""
    scale = over(scale, p_tau)
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    plane_z = M * size
    plane_h = hops * size
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    o_m = begin + tl.arange(0, BM)
    i_m = (pid // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    p_m = p_z + i_m * size
    m = chunks(p_m, plane_z, begin, 0, KEPT, PZ, D, BM, BK)
    factor = scale * LN2
    b_bm = tl.load(p_bias + i_m * T + o_m)
    p_sum += i_m * size
    p_rest += i_m * T
    acc, b_sum = earlier(p_sum, p_rest, begin, chunk, add, BD // BK, D, BM, BK)
    for i_g in range(0, hops // M):
        i_u = (i_m + M - first - i_g) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_u
        p_u = p_z + i_u * size
        p_q = p_pull + i_h * size
        for i in range(0, tl.where(begin < n_m, tl.load(p_len + i_u), 0), BN):
            b_lse, b_level = nearest(p_row, p_level, i_h, i + tl.arange(0, BN), hops, T, CHUNKS)
            u = chunks(p_u, plane_z, i, 0, KEPT, PZ, D, BN, BK)
            q = chunks(p_q, plane_h, i, 0, KEPT, PC, D, BN, BK)
            b_s = scores(m, p_m, plane_z, begin, u, p_u, plane_z, i, ZZ, D, BM, BN, BK, FRESH)
            b_r = scores(m, p_m, plane_z, begin, q, p_q, plane_h, i, PC, D, BM, BN, BK, FRESH)
            b_p = tl.exp2(b_s * scale + b_bm[:, None] - b_lse[None, :])
            ds, b_cut = cut(b_p * (b_r * factor - (b_level * factor)[None, :]), PC, CONVERT)
            b_sum += tl.sum(b_cut, 1)
            u = chunks_of(u, p_u, plane_z, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, ds, u, PC, FRESH)
            q = chunks_of(q, p_q, plane_h, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, split(b_p, PC, CONVERT), q, PC, FRESH)
    leave(p_sum, p_rest, begin, chunk, acc, b_sum, D)


@triton.jit(do_not_specialize=["N", "M", "spans", "T1", "T2"])
def tcc_finish_kernel(
    p_z,
    p_sums,  # [PARTS, M, T, D]: sums of the walks
    p_rests,  # [PARTS, M, T]
    p_len,
    p_tau,
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
    P: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    L2: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The gradients of x and y. For a distance |a - b|^2 the walks have summed b; this adds a."""
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
    o_m = begin + tl.arange(0, BT)
    m_m = o_m < n_m  # other rows have not been written
    rows = tl.cast(M, tl.int64) * T
    b_rest = tl.zeros([BT], tl.float32)
    if L2:
        for w in tl.static_range(PARTS):
            b_rest += tl.load(p_rests + w * rows + i_m * T + o_m, mask=m_m, other=0.0)
    factor = over(scale, p_tau) * LN2
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)
        p_tile = p_sums + (i_m * T + o_m)[:, None] * D + o_k[None, :]
        b_out = tl.zeros([BT, BK], tl.float32)
        for w in tl.static_range(PARTS):
            b_out += tl.load(p_tile + w * rows * D, mask=m_m[:, None], other=0.0)
        if L2:
            b_z = whole(tile(p_z + i_m * T * D, rows * D, begin, k, P, D, BT, BK))
            b_out -= b_rest[:, None] * b_z
        p_tile = p_out + o_m.to(tl.int64)[:, None] * CHANNELS + o_k[None, :]
        m_out = (o_m < T_m)[:, None] & (o_k < CHANNELS)[None, :]
        tl.store(p_tile, tl.where(m_m[:, None], b_out * factor, 0.0), mask=m_out)
