"""The Triton kernels of tcc_loss's cycles u -> v -> u and of their gradients.

A program owns BM frames of one sequence and walks over the others in tiles of BN frames, so nothing
is added across programs: no atomics, the same bits every time. README.md in this folder derives the
formulas, triton_tiles.py says how sequences and hops are numbered.
"""

import triton
import triton.language as tl

from fastseq.ops.tcc.triton_tiles import (
    CURVE,
    ERROR,
    LEVEL,
    LN2,
    LSE_U,
    LSE_V,
    SLOPE,
    chunk_of,
    dot,
    frames,
    hop,
    products,
    row_of,
    slopes,
    to_operand,
)


@triton.jit(do_not_specialize=["M", "T", "first", "hops"])
def tcc_nearest_kernel(
    p_z,  # [M, T, D]
    p_bias,  # [M, T]
    p_len,  # [M]
    p_nn,  # [hops, T, D]: soft nearest neighbours
    p_row,  # [6, hops, T]
    M,
    T,
    first,  # shift of the group's first hop
    hops,
    scale,  # of products, log2(e) / (D temperature), twice that for distances
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    blocks = tl.cdiv(T, BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_h = (pid // blocks).to(tl.int64)
    i_u = i_h % M
    i_v = (i_u + first + i_h // M) % M
    n_u, n_v = hop(p_len, i_u, i_v)
    p_u = p_z + i_u * T * D
    p_v = p_z + i_v * T * D
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < n_u
    b_u = frames(p_u, o_m, m_m, 0, D, BK)  # [BM, BK]

    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    b_lr = tl.zeros([BM], tl.float32)  # of the weights as they are multiplied
    b_acc = tl.zeros([BM, BD], tl.float32)
    for j in range(0, tl.where(i_b * BM < n_u, n_v, 0), BN):
        o_n = j + tl.arange(0, BN)
        m_n = o_n < n_v
        b_s, b_c = products(p_u, b_u, o_m, m_m, p_v, o_n, m_n, D, BM, BN, BK, PREC)
        b_bias = tl.load(p_bias + i_v * T + o_n, mask=m_n, other=float("inf"))
        b_x = b_s * scale - b_bias[None, :]
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_p = tl.exp2(b_x - b_new[:, None])
        b_pr = to_operand(b_p, PREC)
        b_down = tl.exp2(b_max - b_new)
        b_l = b_l * b_down + tl.sum(b_p, 1)
        b_lr = b_lr * b_down + tl.sum(b_pr, 1)
        b_c = chunk_of(p_v, b_c, o_n, m_n, chunk, D, BK, BD)
        b_acc = dot(b_pr, b_c, b_acc * b_down[:, None], PREC)
        b_max = b_new

    b_acc = b_acc / b_lr[:, None]
    o_k = chunk + tl.arange(0, BD)
    p_out = (i_h * T + o_m)[:, None] * D + o_k[None, :]
    m_out = m_m[:, None] & (o_k < D)[None, :]
    tl.store(p_nn + p_out, b_acc, mask=m_out)
    if chunk == 0:
        tl.store(row_of(p_row, LSE_V, i_h, hops, T) + o_m, b_max + tl.log2(b_l), mask=m_m)


@triton.jit(do_not_specialize=["M", "T", "first", "hops"])
def tcc_moments_kernel(
    p_z,
    p_bias,
    p_t,  # [M, T]
    p_len,
    p_seq,  # [3, M]: scale of times, least variance, weight
    p_nn,
    p_row,
    p_part,  # [hops, blocks]: losses
    M,
    T,
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
    TYPE: tl.constexpr,
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    variance_lambda = tl.cast(variance_lambda, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    delta = tl.cast(delta, tl.float32)
    CLASSES: tl.constexpr = TYPE == "classification"
    blocks = tl.cdiv(T, BM)
    i_b = tl.program_id(0) % blocks
    i_h = (tl.program_id(0) // blocks).to(tl.int64)
    i_u = i_h % M
    n_u = hop(p_len, i_u, (i_u + first + i_h // M) % M)[0]
    p_u = p_z + i_u * T * D
    p_h = p_nn + i_h * T * D
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < n_u
    b_nn = frames(p_h, o_m, m_m, 0, D, BK)
    b_tm = tl.load(p_t + i_u * T + o_m, mask=m_m, other=0.0)

    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    # Mean of the gaps and sum of their squared deviations from it, or of all logits and the own.
    b_mean = tl.zeros([BM], tl.float32)
    b_m2 = tl.zeros([BM], tl.float32)
    for k in range(0, tl.where(i_b * BM < n_u, n_u, 0), BN):
        o_n = k + tl.arange(0, BN)
        m_n = o_n < n_u
        b_s, _ = products(p_h, b_nn, o_m, m_m, p_u, o_n, m_n, D, BM, BN, BK, PREC)
        b_bias = tl.load(p_bias + i_u * T + o_n, mask=m_n, other=float("inf"))
        b_x = b_s * scale - b_bias[None, :]
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_p = tl.exp2(b_x - b_new[:, None])
        b_down = tl.exp2(b_max - b_new)
        b_tile = tl.sum(b_p, 1)
        b_old = b_l * b_down
        b_l = b_old + b_tile
        b_max = b_new
        if CLASSES:
            b_mean += tl.sum(tl.where(m_n[None, :], b_x, 0.0), 1)
            b_m2 += tl.sum(tl.where(o_m[:, None] == o_n[None, :], b_x, 0.0), 1)
        else:
            # Moments of the tile, then both merged (Chan): no difference of squares, so that a
            # variance is never negative and a narrow softmax keeps its digits.
            b_tn = tl.load(p_t + i_u * T + o_n, mask=m_n, other=0.0)
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
    tl.store(row_of(p_row, LSE_U, i_h, hops, T) + o_m, b_lse, mask=m_m)
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
            # Comparisons are such that NaN stays NaN.
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
            b_curve *= weight * unit * unit
            tl.store(row_of(p_row, CURVE, i_h, hops, T) + o_m, b_curve, mask=m_m)
            b_level = b_curve * (b_m2 / b_l)
            tl.store(row_of(p_row, LEVEL, i_h, hops, T) + o_m, b_level, mask=m_m)
        b_slope *= weight * unit
        tl.store(row_of(p_row, ERROR, i_h, hops, T) + o_m, b_mean, mask=m_m)
    tl.store(row_of(p_row, SLOPE, i_h, hops, T) + o_m, b_slope, mask=m_m)
    tl.store(p_part + i_h * blocks + i_b, tl.sum(tl.where(m_m, b_loss, 0.0), 0))


@triton.jit(do_not_specialize=["M", "T", "first", "hops"])
def tcc_pull_kernel(
    p_z,
    p_bias,
    p_t,
    p_len,
    p_nn,
    p_row,
    p_pull,  # [hops, T, D]: gradient of the nearest neighbours over the scale of scores
    p_level,  # [chunks, hops, T]: its product with them
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
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    blocks = tl.cdiv(T, BM)
    i_c = tl.program_id(0) % CHUNKS
    chunk = i_c * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_h = (pid // blocks).to(tl.int64)
    i_u = i_h % M
    n_u = hop(p_len, i_u, (i_u + first + i_h // M) % M)[0]
    p_u = p_z + i_u * T * D
    p_h = p_nn + i_h * T * D
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < n_u
    b_nn = frames(p_h, o_m, m_m, 0, D, BK)
    b_tm, b_lse, b_e, b_a, b_b, b_c = cycle(p_t + i_u * T, p_row, i_h, o_m, m_m, hops, T, TYPE)

    b_acc = tl.zeros([BM, BD], tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for k in range(0, tl.where(i_b * BM < n_u, n_u, 0), BN):
        o_n = k + tl.arange(0, BN)
        m_n = o_n < n_u
        b_s, b_u = products(p_h, b_nn, o_m, m_m, p_u, o_n, m_n, D, BM, BN, BK, PREC)
        b_bias = tl.load(p_bias + i_u * T + o_n, mask=m_n, other=float("inf"))
        b_tn = tl.load(p_t + i_u * T + o_n, mask=m_n, other=0.0)
        b_x = b_s * scale - b_bias[None, :] - b_lse[:, None]
        b_d = b_tn[None, :] - b_tm[:, None] - b_e[:, None]
        m_own = o_m[:, None] == o_n[None, :]
        m_pair = m_m[:, None] & m_n[None, :]
        b_w, b_y, b_z = b_a[:, None], b_b[:, None], b_c[:, None]
        b_dl = slopes(b_x, b_d, b_w, b_y, b_z, m_own, m_pair, smoothing, n_u, TYPE)
        b_dl = to_operand(b_dl, PREC)
        b_sum += tl.sum(b_dl, 1)
        b_acc = dot(b_dl, chunk_of(p_u, b_u, o_n, m_n, chunk, D, BK, BD), b_acc, PREC)

    # Rows of dl sum to 0 but for rounding, which a common offset of all frames would magnify.
    b_nn = frames(p_h, o_m, m_m, chunk, D, BD)
    b_pull = to_operand(b_acc - b_sum[:, None] * b_nn, PREC)
    o_k = chunk + tl.arange(0, BD)
    p_out = p_pull + (i_h * T + o_m)[:, None] * D + o_k[None, :]
    tl.store(p_out, b_pull, mask=m_m[:, None] & (o_k < D)[None, :])
    b_level = tl.sum(b_pull * b_nn, 1)
    tl.store(row_of(p_level, i_c, i_h, hops, T) + o_m, b_level, mask=m_m)


@triton.jit
def cycle(p_t, p_row, i_h, o_t, m_t, hops, T, TYPE: tl.constexpr):
    """Times and statistics of the cycles of hop i_h, such that masked frames have no part."""
    b_t = tl.load(p_t + o_t, mask=m_t, other=0.0)
    b_lse = tl.load(row_of(p_row, LSE_U, i_h, hops, T) + o_t, mask=m_t, other=float("inf"))
    b_a = tl.load(row_of(p_row, SLOPE, i_h, hops, T) + o_t, mask=m_t, other=0.0)
    b_e = tl.zeros_like(b_a)
    b_b = b_e
    b_c = b_e
    if TYPE != "classification":
        b_e = tl.load(row_of(p_row, ERROR, i_h, hops, T) + o_t, mask=m_t, other=0.0)
    if TYPE == "regression_mse_var":
        b_b = tl.load(row_of(p_row, CURVE, i_h, hops, T) + o_t, mask=m_t, other=0.0)
        b_c = tl.load(row_of(p_row, LEVEL, i_h, hops, T) + o_t, mask=m_t, other=0.0)
    return b_t, b_lse, b_e, b_a, b_b, b_c


@triton.jit
def nearest(p_row, p_level, i_h, o_t, m_t, hops, T, CHUNKS: tl.constexpr):
    """Log-sum-exps of the cycles' first softmax, and the mean under it of its gradient."""
    b_lse = tl.load(row_of(p_row, LSE_V, i_h, hops, T) + o_t, mask=m_t, other=float("inf"))
    b_level = tl.load(row_of(p_level, 0, i_h, hops, T) + o_t, mask=m_t, other=0.0)
    for c in tl.static_range(1, CHUNKS):
        b_level += tl.load(row_of(p_level, c, i_h, hops, T) + o_t, mask=m_t, other=0.0)
    return b_lse, b_level


@triton.jit(do_not_specialize=["N", "M", "T", "T1", "T2", "first", "hops", "add"])
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
    T,
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
    PREC: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    factor = scale * LN2
    blocks = tl.cdiv(T, BM)
    PARTS: tl.constexpr = (D + BD - 1) // BD
    chunk = tl.program_id(0) % PARTS * BD
    pid = tl.program_id(0) // PARTS
    i_b = pid % blocks
    i_m = (pid // blocks).to(tl.int64)
    n_m = tl.load(p_len + i_m)
    p_m = p_z + i_m * T * D
    o_m = i_b * BM + tl.arange(0, BM)
    m_m = o_m < n_m
    b_m = frames(p_m, o_m, m_m, 0, D, BK)
    b_bm = tl.load(p_bias + i_m * T + o_m, mask=m_m, other=float("inf"))
    b_tm = tl.load(p_t + i_m * T + o_m, mask=m_m, other=0.0)
    some = i_b * BM < n_m
    p_out = p_dx + i_m * T1 * CHANNELS
    T_m = T1
    if i_m >= N:
        p_out = p_dy + (i_m - N) * T2 * CHANNELS
        T_m = T2
    o_k = chunk + tl.arange(0, BD)
    p_out += o_m.to(tl.int64)[:, None] * CHANNELS + o_k[None, :]
    m_out = (o_m < T_m)[:, None] & (o_k < CHANNELS)[None, :]

    for i_g in range(0, hops // M):
        shift = first + i_g
        i_v = (i_m + shift) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_m
        n_u, n_v = hop(p_len, i_m, i_v)
        n_u = tl.where(some, n_u, 0)
        n_v = tl.where(n_u > 0, n_v, 0)
        b_acc = tl.zeros([BM, BD], tl.float32)
        b_sum = tl.zeros([BM], tl.float32)

        # Out, as keys: the cycles of all frames end here.
        p_h = p_nn + i_h * T * D
        for i in range(0, n_u, BN):
            o_n = i + tl.arange(0, BN)
            m_n = o_n < n_u
            b_tn, b_lse, b_e, b_a, b_b, b_c = cycle(
                p_t + i_m * T, p_row, i_h, o_n, m_n, hops, T, TYPE
            )
            b_s, b_nn = products(p_m, b_m, o_m, m_m, p_h, o_n, m_n, D, BM, BN, BK, PREC)
            b_x = b_s * scale - b_bm[:, None] - b_lse[None, :]
            b_d = b_tm[:, None] - b_tn[None, :] - b_e[None, :]
            m_own = o_m[:, None] == o_n[None, :]
            m_pair = m_m[:, None] & m_n[None, :]
            b_w, b_y, b_z = b_a[None, :], b_b[None, :], b_c[None, :]
            b_dl = slopes(b_x, b_d, b_w, b_y, b_z, m_own, m_pair, smoothing, n_u, TYPE)
            b_dl = to_operand(b_dl, PREC)
            b_sum += tl.sum(b_dl, 1)
            b_acc = dot(b_dl, chunk_of(p_h, b_nn, o_n, m_n, chunk, D, BK, BD), b_acc, PREC)

        # Out, as queries: these frames' cycles pass through v.
        p_v = p_z + i_v * T * D
        p_q = p_pull + i_h * T * D
        m_u = m_m & (n_u > 0)
        b_lse_m, b_level_m = nearest(p_row, p_level, i_h, o_m, m_u, hops, T, CHUNKS)
        b_q_m = frames(p_q, o_m, m_u, 0, D, BK)
        for j in range(0, n_v, BN):
            o_n = j + tl.arange(0, BN)
            m_n = o_n < n_v
            b_bias = tl.load(p_bias + i_v * T + o_n, mask=m_n, other=float("inf"))
            b_s, _ = products(p_m, b_m, o_m, m_m, p_v, o_n, m_n, D, BM, BN, BK, PREC)
            b_r, b_v = products(p_q, b_q_m, o_m, m_u, p_v, o_n, m_n, D, BM, BN, BK, PREC)
            b_p = tl.exp2(b_s * scale - b_bias[None, :] - b_lse_m[:, None])
            b_ds = to_operand(b_p * (b_r - b_level_m[:, None]) * factor, PREC)
            b_sum += tl.sum(b_ds, 1)
            b_acc = dot(b_ds, chunk_of(p_v, b_v, o_n, m_n, chunk, D, BK, BD), b_acc, PREC)

        # In: other sequences' cycles pass through these frames.
        i_u = (i_m + M - shift) % M
        i_h = tl.cast(i_g, tl.int64) * M + i_u
        n_u = tl.where(some, tl.load(p_len + i_u), 0)
        p_u = p_z + i_u * T * D
        p_q = p_pull + i_h * T * D
        for i in range(0, n_u, BN):
            o_n = i + tl.arange(0, BN)
            m_n = o_n < n_u
            b_lse, b_level = nearest(p_row, p_level, i_h, o_n, m_n, hops, T, CHUNKS)
            b_s, b_u = products(p_m, b_m, o_m, m_m, p_u, o_n, m_n, D, BM, BN, BK, PREC)
            b_r, b_q = products(p_m, b_m, o_m, m_m, p_q, o_n, m_n, D, BM, BN, BK, PREC)
            b_p = tl.exp2(b_s * scale - b_bm[:, None] - b_lse[None, :])
            b_ds = to_operand(b_p * (b_r - b_level[None, :]) * factor, PREC)
            b_sum += tl.sum(b_ds, 1)
            b_acc = dot(b_ds, chunk_of(p_u, b_u, o_n, m_n, chunk, D, BK, BD), b_acc, PREC)
            b_pr = to_operand(b_p, PREC)
            b_acc = dot(b_pr, chunk_of(p_q, b_q, o_n, m_n, chunk, D, BK, BD), b_acc, PREC)

        if L2:
            b_acc -= b_sum[:, None] * frames(p_m, o_m, m_m, chunk, D, BD).to(tl.float32)
        b_acc = tl.where(m_m[:, None], b_acc * factor, 0.0)
        if i_g + add > 0:
            b_acc += tl.load(p_out, mask=m_out, other=0.0)
        tl.store(p_out, b_acc, mask=m_out)
