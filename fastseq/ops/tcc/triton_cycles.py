"""The Triton kernels of tcc_loss's cycles u -> v -> u.

A program owns BM frames of one sequence and walks over another in tiles of BN frames, so nothing is
added across programs: no atomics, the same bits every time. README.md in this folder derives the
formulas; triton_tiles.py describes how sequences and hops are numbered. Constants of all kernels: D
channels; tiles of BM rows and BN columns; scores in steps of BK channels; programs own BD channels
of their accumulators; PZ and PC planes of frames and of computed numbers; ZZ orders of the products
of two frames.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import over
from fastseq.ops.tcc.triton_tiles import (
    CURVE,
    ERROR,
    LEVEL,
    LN2,
    LSE_U,
    LSE_V,
    SLOPE,
    SPAN,
    accumulate,
    chunks,
    chunks_of,
    cut,
    hop,
    labels,
    row_of,
    scaled,
    scores,
    slopes,
    split,
    store_tile,
    tile,
    whole,
    zeros,
)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops"])
def tcc_nearest_kernel(
    p_z,  # [PZ, M, T, D]
    p_bias,  # [M, T]
    p_len,  # [M]
    p_tau,  # temperature; None: scale includes it
    p_nn,  # [PC, hops, T, D]: soft nearest neighbours
    p_row,  # [6, hops, T]
    M,
    spans,  # T over SPAN
    first,  # shift of the group's first hop
    hops,
    scale,  # of products, log2(e) / (D temperature), twice that for distances
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    scale = over(scale, p_tau)
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    blocks = T // BM
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    i_h = (pid // blocks).to(tl.int64)
    i_u = i_h % M
    i_v = (i_u + first + i_h // M) % M
    n_u, n_v = hop(p_len, i_u, i_v)
    plane = M * size
    p_u = p_z + i_u * size
    p_v = p_z + i_v * size
    u = chunks(p_u, plane, begin, 0, KEPT, PZ, D, BM, BK)

    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    acc = zeros(BD // BK, BM, BK)
    for j in range(0, tl.where(begin < n_u, n_v, 0), BN):
        v = chunks(p_v, plane, j, 0, KEPT, PZ, D, BN, BK)
        b_bias = tl.load(p_bias + i_v * T + j + tl.arange(0, BN))
        b_s = scores(u, p_u, plane, begin, v, p_v, plane, j, ZZ, D, BM, BN, BK, FRESH)
        b_x = b_s * scale + b_bias[None, :]
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_p = tl.exp2(b_x - b_new[:, None])
        b_down = tl.exp2(b_max - b_new)
        b_l = b_l * b_down + tl.sum(b_p, 1)
        v = chunks_of(v, p_v, plane, j, chunk, D, BN, BK, BD)
        acc = accumulate(scaled(acc, b_down), split(b_p, PC), v, PC, FRESH)
        b_max = b_new

    o_m = begin + tl.arange(0, BM)
    m_m = o_m < n_u
    p_h = p_nn + i_h * size
    for k in tl.static_range(BD // BK):
        b_nn = tl.where(m_m[:, None], acc[k] / b_l[:, None], 0.0)
        store_tile(p_h, hops * size, begin, chunk + k * BK, split(b_nn, PC), D, BM, BK)
    if chunk == 0:
        b_lse = tl.where(m_m, b_max + tl.log2(b_l), float("inf"))
        tl.store(row_of(p_row, LSE_V, i_h, hops, T) + o_m, b_lse)


@triton.jit(do_not_specialize=["M", "spans", "first", "hops"])
def tcc_moments_kernel(
    p_z,
    p_bias,
    p_t,  # [M, T]
    p_len,
    p_seq,  # [3, M]: scale of times, least variance, weight
    p_tau,
    p_nn,
    p_row,
    p_part,  # [hops, blocks]: losses
    M,
    spans,
    first,
    hops,
    scale,
    variance_lambda,
    smoothing,
    delta,
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
    scale = over(scale, p_tau)
    variance_lambda = tl.cast(variance_lambda, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    delta = tl.cast(delta, tl.float32)
    CLASSES: tl.constexpr = TYPE == "classification"
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    blocks = T // BM
    i_b = tl.program_id(0) % blocks
    begin = i_b * BM
    i_h = (tl.program_id(0) // blocks).to(tl.int64)
    i_u = i_h % M
    n_u = hop(p_len, i_u, (i_u + first + i_h // M) % M)[0]
    plane_u = M * size
    plane_h = hops * size
    p_u = p_z + i_u * size
    p_h = p_nn + i_h * size
    o_m = begin + tl.arange(0, BM)
    m_m = o_m < n_u
    nn = chunks(p_h, plane_h, begin, 0, KEPT, PC, D, BM, BK)
    b_tm = tl.load(p_t + i_u * T + o_m)

    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    # Mean of the gaps and sum of their squared deviations from it; or the sum of the logits and the
    # frame's own logit.
    b_mean = tl.zeros([BM], tl.float32)
    b_m2 = tl.zeros([BM], tl.float32)
    for k in range(0, tl.where(begin < n_u, n_u, 0), BN):
        o_n = k + tl.arange(0, BN)
        u = chunks(p_u, plane_u, k, 0, KEPT, PZ, D, BN, BK)
        b_bias = tl.load(p_bias + i_u * T + o_n)
        b_s = scores(nn, p_h, plane_h, begin, u, p_u, plane_u, k, PC, D, BM, BN, BK, FRESH)
        b_x = b_s * scale + b_bias[None, :]
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_p = tl.exp2(b_x - b_new[:, None])
        b_down = tl.exp2(b_max - b_new)
        b_tile = tl.sum(b_p, 1)
        b_old = b_l * b_down
        b_l = b_old + b_tile
        b_max = b_new
        if CLASSES:
            b_mean += tl.sum(tl.where((o_n < n_u)[None, :], b_x, 0.0), 1)
            b_m2 += tl.sum(tl.where(o_m[:, None] == o_n[None, :], b_x, 0.0), 1)
        else:
            # Moments of the tile, then merged (Chan): no difference of squares, so that a variance
            # is never negative and a narrow softmax keeps its digits.
            b_tn = tl.load(p_t + i_u * T + o_n)
            b_d = b_tn[None, :] - b_tm[:, None]
            b_here = tl.where(b_tile == 0.0, 0.0, tl.sum(b_p * b_d, 1) / b_tile)
            b_d -= b_here[:, None]
            b_share = b_tile / b_l
            b_apart = b_here - b_mean
            b_mean += b_apart * b_share
            b_m2 = b_m2 * b_down + tl.sum(b_p * b_d * b_d, 1)
            b_m2 += b_apart * b_apart * b_old * b_share

    b_lse = b_max + tl.log2(b_l)
    weight = tl.load(p_seq + 2 * M + i_u)
    tl.store(row_of(p_row, LSE_U, i_h, hops, T) + o_m, tl.where(m_m, b_lse, float("inf")))
    if CLASSES:
        b_loss = b_lse - (1.0 - smoothing) * b_m2
        b_loss = (b_loss - smoothing * b_mean / tl.maximum(n_u, 1).to(tl.float32)) * LN2
        b_slope = tl.zeros([BM], tl.float32) + weight
    else:
        # Errors and variances in the units of the loss.
        unit = tl.load(p_seq + i_u)
        b_e = b_mean * unit
        if TYPE == "regression_mse":
            b_loss = b_e * b_e
            b_slope = 2.0 * b_e
        elif TYPE == "regression_huber":
            # Comparisons are written so that NaN stays NaN.
            b_slope = tl.where(b_e > delta, delta, tl.where(b_e < -delta, -delta, b_e))
            b_loss = b_slope * (b_e - 0.5 * b_slope)
        else:
            floor = tl.load(p_seq + M + i_u)
            b_var = b_m2 / b_l * unit * unit
            b_v = tl.where(b_var < floor, floor, b_var)
            b_ratio = b_e * b_e / b_v
            b_loss = b_ratio + variance_lambda * tl.log(b_v)
            b_slope = 2.0 * b_e / b_v
            b_curve = tl.where(b_var < floor, 0.0, (variance_lambda - b_ratio) / b_v)
            b_curve = tl.where(m_m, b_curve * (weight * unit * unit), 0.0)
            tl.store(row_of(p_row, CURVE, i_h, hops, T) + o_m, b_curve)
            b_level = tl.where(m_m, b_curve * (b_m2 / b_l), 0.0)
            tl.store(row_of(p_row, LEVEL, i_h, hops, T) + o_m, b_level)
        b_slope *= weight * unit
        tl.store(row_of(p_row, ERROR, i_h, hops, T) + o_m, tl.where(m_m, b_mean, 0.0))
    tl.store(row_of(p_row, SLOPE, i_h, hops, T) + o_m, tl.where(m_m, b_slope, 0.0))
    tl.store(p_part + i_h * blocks + i_b, tl.sum(tl.where(m_m, b_loss, 0.0), 0))


@triton.jit(do_not_specialize=["M", "spans", "first", "hops"])
def tcc_pull_kernel(
    p_z,
    p_bias,
    p_t,
    p_len,
    p_tau,
    p_nn,
    p_row,
    p_pull,  # [PC, hops, T, D]: gradient of the nearest neighbours / scale of the scores
    p_level,  # [chunks, hops, T]: its product with them
    M,
    spans,
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
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
):
    scale = over(scale, p_tau)
    smoothing = tl.cast(smoothing, tl.float32)
    FRESH: tl.constexpr = PC == 3
    KEPT: tl.constexpr = D // BK if BD == D else 1
    T = spans * SPAN
    size = tl.cast(T, tl.int64) * D
    blocks = T // BM
    i_c = tl.program_id(0) % (D // BD)
    chunk = i_c * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    i_h = (pid // blocks).to(tl.int64)
    i_u = i_h % M
    n_u = hop(p_len, i_u, (i_u + first + i_h // M) % M)[0]
    plane_u = M * size
    plane_h = hops * size
    p_u = p_z + i_u * size
    p_h = p_nn + i_h * size
    o_m = begin + tl.arange(0, BM)
    nn = chunks(p_h, plane_h, begin, 0, KEPT, PC, D, BM, BK)
    b_tm, b_lse, b_e, b_a, b_b, b_c = cycle(p_t + i_u * T, p_row, i_h, o_m, hops, T, TYPE)
    b_w, b_y, b_z = b_a[:, None], b_b[:, None], b_c[:, None]

    acc = zeros(BD // BK, BM, BK)
    b_sum = tl.zeros([BM], tl.float32)
    for k in range(0, tl.where(begin < n_u, n_u, 0), BN):
        o_n = k + tl.arange(0, BN)
        u = chunks(p_u, plane_u, k, 0, KEPT, PZ, D, BN, BK)
        b_bias = tl.load(p_bias + i_u * T + o_n)
        b_tn = tl.load(p_t + i_u * T + o_n)
        b_s = scores(nn, p_h, plane_h, begin, u, p_u, plane_u, k, PC, D, BM, BN, BK, FRESH)
        b_x = b_s * scale + b_bias[None, :] - b_lse[:, None]
        b_d = b_tn[None, :] - b_tm[:, None] - b_e[:, None]
        b_label = labels(o_m, o_n, smoothing, n_u, TYPE)
        b_dl = slopes(b_x, b_d, b_w, b_y, b_z, b_label, TYPE)
        if TYPE == "classification":  # padded frames have labels too
            b_dl = tl.where((o_n < n_u)[None, :], b_dl, 0.0)
        dl, b_cut = cut(b_dl, PC)
        b_sum += tl.sum(b_cut, 1)
        u = chunks_of(u, p_u, plane_u, k, chunk, D, BN, BK, BD)
        acc = accumulate(acc, dl, u, PC, FRESH)

    b_level = tl.zeros([BM], tl.float32)
    p_out = p_pull + i_h * size
    for k in tl.static_range(BD // BK):
        # Rows of dl sum to 0 except for rounding, which a common offset would magnify.
        b_nn = whole(tile(p_h, plane_h, begin, chunk + k * BK, PC, D, BM, BK))
        pull = split(acc[k] - b_sum[:, None] * b_nn, PC)
        store_tile(p_out, plane_h, begin, chunk + k * BK, pull, D, BM, BK)
        b_level += tl.sum(whole(pull) * b_nn, 1)
    tl.store(row_of(p_level, i_c, i_h, hops, T) + o_m, b_level)


@triton.jit
def cycle(p_t, p_row, i_h, o_t, hops, T, TYPE: tl.constexpr):
    """Times and statistics of the cycles of hop i_h."""
    b_t = tl.load(p_t + o_t)
    b_lse = tl.load(row_of(p_row, LSE_U, i_h, hops, T) + o_t)
    b_a = tl.load(row_of(p_row, SLOPE, i_h, hops, T) + o_t)
    b_e = tl.zeros_like(b_a)
    b_b = b_e
    b_c = b_e
    if TYPE != "classification":
        b_e = tl.load(row_of(p_row, ERROR, i_h, hops, T) + o_t)
    if TYPE == "regression_mse_var":
        b_b = tl.load(row_of(p_row, CURVE, i_h, hops, T) + o_t)
        b_c = tl.load(row_of(p_row, LEVEL, i_h, hops, T) + o_t)
    return b_t, b_lse, b_e, b_a, b_b, b_c
