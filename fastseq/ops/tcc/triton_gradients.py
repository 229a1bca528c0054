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


@triton.jit(do_not_specialize=["N", "M", "spans", "T1", "T2", "first", "hops", "add"])
def tcc_grad_kernel(
    p_z,
    p_bias,
    p_t,
    p_len,
    p_nn,
    p_row,
    p_pull,
    p_level,
    p_dx,  # [N, T1, CHANNELS] fp32
    p_dy,  # [N, T2, CHANNELS] fp32
    N,
    M,
    spans,
    T1,
    T2,
    first,
    hops,
    add,  # 0, or 1 to add to the gradients of earlier hops
    scale,
    smoothing,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNKS: tl.constexpr,  # of p_level
    L2: tl.constexpr,
    TYPE: tl.constexpr,
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    factor = scale * LN2
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    i_m = (pid // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    plane_z = M * size
    plane_h = hops * size
    p_m = p_z + i_m * size
    o_m = begin + tl.arange(0, BM)
    m = chunks(p_m, plane_z, begin, 0, KEPT, PZ, D, BM, BK)
    b_bm = tl.load(p_bias + i_m * T + o_m)
    b_tm = tl.load(p_t + i_m * T + o_m)
    some = begin < n_m
    p_out = p_dx + i_m * T1 * CHANNELS
    T_m = T1
    if i_m >= N:
        p_out = p_dy + (i_m - N) * T2 * CHANNELS
        T_m = T2
    p_out += o_m.to(tl.int64)[:, None] * CHANNELS + (chunk + tl.arange(0, BK))[None, :]

    for i_g in range(0, hops // M):
        shift = first + i_g
        i_v = (i_m + shift) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_m
        n_u, n_v = hop(p_len, i_m, i_v)
        n_u = tl.where(some, n_u, 0)
        n_v = tl.where(n_u > 0, n_v, 0)
        acc = zeros(BD // BK, BM, BK)
        b_sum = tl.zeros([BM], tl.float32)

        # Out, as keys: the cycles of all frames end here.
        p_h = p_nn + i_h * size
        for i in range(0, n_u, BN):
            o_n = i + tl.arange(0, BN)
            b_tn, b_lse, b_e, b_a, b_b, b_c = cycle(p_t + i_m * T, p_row, i_h, o_n, hops, T, TYPE)
            nn = chunks(p_h, plane_h, i, 0, KEPT, PC, D, BN, BK)
            b_s = scores(m, p_m, plane_z, begin, nn, p_h, plane_h, i, PC, D, BM, BN, BK, FRESH)
            b_x = b_s * scale + b_bm[:, None] - b_lse[None, :]
            b_d = b_tm[:, None] - b_tn[None, :] - b_e[None, :]
            b_w, b_y, b_z = b_a[None, :], b_b[None, :], b_c[None, :]
            b_label = labels(o_m, o_n, smoothing, n_u, TYPE)
            dl = split(slopes(b_x, b_d, b_w, b_y, b_z, b_label, TYPE), PC)
            b_sum += tl.sum(whole(dl), 1)
            nn = chunks_of(nn, p_h, plane_h, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, dl, nn, PC, FRESH)

        # Out, as queries: these frames' cycles pass through v.
        p_v = p_z + i_v * size
        p_q = p_pull + i_h * size
        b_lse_m, b_level_m = nearest(p_row, p_level, i_h, o_m, hops, T, CHUNKS)
        b_level_m *= factor
        q_m = chunks(p_q, plane_h, begin, 0, KEPT, PC, D, BM, BK)
        for j in range(0, n_v, BN):
            v = chunks(p_v, plane_z, j, 0, KEPT, PZ, D, BN, BK)
            b_bias = tl.load(p_bias + i_v * T + j + tl.arange(0, BN))
            b_s = scores(m, p_m, plane_z, begin, v, p_v, plane_z, j, ZZ, D, BM, BN, BK, FRESH)
            b_r = scores(q_m, p_q, plane_h, begin, v, p_v, plane_z, j, PC, D, BM, BN, BK, FRESH)
            b_p = tl.exp2(b_s * scale + b_bias[None, :] - b_lse_m[:, None])
            ds = split(b_p * (b_r * factor - b_level_m[:, None]), PC)
            b_sum += tl.sum(whole(ds), 1)
            v = chunks_of(v, p_v, plane_z, j, chunk, D, BN, BK, BD)
            acc = accumulate(acc, ds, v, PC, FRESH)

        # In: other sequences' cycles pass through these frames.
        i_u = (i_m + M - shift) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_u
        n_u = tl.where(some, tl.load(p_len + i_u), 0)
        p_u = p_z + i_u * size
        p_q = p_pull + i_h * size
        for i in range(0, n_u, BN):
            b_lse, b_level = nearest(p_row, p_level, i_h, i + tl.arange(0, BN), hops, T, CHUNKS)
            u = chunks(p_u, plane_z, i, 0, KEPT, PZ, D, BN, BK)
            q = chunks(p_q, plane_h, i, 0, KEPT, PC, D, BN, BK)
            b_s = scores(m, p_m, plane_z, begin, u, p_u, plane_z, i, ZZ, D, BM, BN, BK, FRESH)
            b_r = scores(m, p_m, plane_z, begin, q, p_q, plane_h, i, PC, D, BM, BN, BK, FRESH)
            b_p = tl.exp2(b_s * scale + b_bm[:, None] - b_lse[None, :])
            ds = split(b_p * (b_r * factor - (b_level * factor)[None, :]), PC)
            b_sum += tl.sum(whole(ds), 1)
            u = chunks_of(u, p_u, plane_z, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, ds, u, PC, FRESH)
            q = chunks_of(q, p_q, plane_h, i, chunk, D, BN, BK, BD)
            acc = accumulate(acc, split(b_p, PC), q, PC, FRESH)

        for k in tl.static_range(BD // BK):
            b_out = acc[k]
            if L2:
                b_z = whole(tile(p_m, plane_z, begin, chunk + k * BK, PZ, D, BM, BK))
                b_out -= b_sum[:, None] * b_z
            b_out = tl.where((o_m < n_m)[:, None], b_out * factor, 0.0)
            m_k = chunk + k * BK + tl.arange(0, BK) < CHANNELS
            m_out = (o_m < T_m)[:, None] & m_k[None, :]
            if i_g + add > 0:
                b_out += tl.load(p_out + k * BK, mask=m_out, other=0.0)
            tl.store(p_out + k * BK, b_out, mask=m_out)
