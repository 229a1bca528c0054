"""The Triton kernels of sinkhorn_alignment's gradient, unrolled through all iterations.

With E_k = exp(l + f_k + g_k) after iteration k of K, and E_0 = exp(l + f_0 + g_1):

    u_K = -sum_q E_K D / sum_q E_K            w_K = -sum_r E_K (D + u_K) / sum_r E_{K-1}
    u_k = -sum_q E_k w_{k+1} / sum_q E_k      w_k = -sum_r E_k u_k / sum_r E_{k-1}
    dl  = E_0 w_1 + sum_k E_k (u_k + w_{k+1}) + E_K D                 w_{K+1} = 0
    dD  = E_K - dl / epsilon

u_k and w_k are adjoints of f_k and g_k, scaled. E_{k-1} / sum_r E_{k-1} is the softmax of column q
whose logarithm g_k normalises: one exponential serves both terms of an iteration. The sums that
divide are 1 / N' and about 1 / M'; as sums they make the terms of a row or column of dl cancel
however large D / epsilon is.
"""

import triton
import triton.language as tl

from fastseq.ops.sinkhorn.triton_tiles import (
    NUMBERS,
    bounds,
    centres,
    exponentials,
    numbers,
    of_rows,
    positions,
    potentials,
    real,
    tile_of,
    turn_of,
)
from fastseq.ops.tcc.triton_tiles import (
    SPAN,
    accumulate,
    chunks,
    cut,
    scores,
    whole,
    zeros,
)


@triton.jit(do_not_specialize=["N", "T", "S", "spans", "iterations", "k"])
def sinkhorn_adjoint_kernel(
    p_z,
    p_h,
    p_c,
    p_lx,
    p_ly,
    p_pairs,
    p_f,  # [N, iterations + 1, T + 1]
    p_g,  # [N, iterations, S + 1]
    p_u,  # as p_f; turn 0 is unused
    p_w,  # as p_g
    N,
    T,
    S,
    spans,
    iterations,
    k,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KEPT: tl.constexpr,
    PZ: tl.constexpr,
    ZZ: tl.constexpr,
    FRESH: tl.constexpr,
    ROWS: tl.constexpr,
    VIRTUAL: tl.constexpr,
    LAST: tl.constexpr,  # k is K
):
    """u_k from w_{k+1} if ROWS, otherwise w_k from u_k."""
    CENTRES: tl.constexpr = p_c is not None
    places = spans * SPAN
    size = tl.cast(places, tl.int64) * D
    plane = size * 2 * N
    last_m, _ = of_rows(T, S, ROWS)
    blocks = tl.cdiv(last_m + 1, BM)
    begin = tl.program_id(0) % blocks * BM
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    i_m, i_o = of_rows(i_n, i_n + N, ROWS)
    end_x, end_y = bounds(p_lx, p_ly, i_n, T, S)
    end_m, end_n = of_rows(end_x, end_y, ROWS)
    p_fk = turn_of(p_f, i_n, iterations + 1, k, T)
    p_gk = turn_of(p_g, i_n, iterations, k - 1, S)
    p_uk = turn_of(p_u, i_n, iterations + 1, k, T)
    p_wk = turn_of(p_w, i_n, iterations, k if ROWS else k - 1, S)
    p_rows, p_columns = of_rows(p_fk, p_gk, ROWS)
    back = tl.where(k > 1, S + 1, 0)  # from g_k to g_{k-1}, or g_1
    p_to, p_from = of_rows(p_uk, p_wk, ROWS)
    o_m = begin + tl.arange(0, BM)
    m_m = real(o_m, end_m, VIRTUAL)
    pair = numbers(p_pairs, i_n)
    p_m = p_z + i_m * size
    p_n = p_z + i_o * size
    m = chunks(p_m, plane, begin, 0, KEPT, PZ, D, BM, BK)
    b_hm = tl.load(p_h + i_m * places + o_m)
    b_tm = positions(p_pairs, i_n, o_m, not ROWS, VIRTUAL)
    b_fm = potentials(p_rows, o_m, m_m)
    b_g0 = b_fm
    if not ROWS:
        b_g0 = potentials(p_rows - back, o_m, m_m)
    b_c = b_tm
    if CENTRES and ROWS:
        b_c = centres(p_c, p_pairs, i_n, T, o_m, m_m)
    b_sum = tl.zeros([BM], tl.float32)
    b_all = tl.zeros([BM], tl.float32)
    for j in range(0, tl.where(begin < end_m, end_n, 0), BN):
        n = chunks(p_n, plane, j, 0, KEPT, PZ, D, BN, BK)
        o_n = j + tl.arange(0, BN)
        m_n = real(o_n, end_n, VIRTUAL)
        b_fn = potentials(p_columns, o_n, m_n)
        b_hn = tl.load(p_h + i_o * places + o_n)
        b_tn = positions(p_pairs, i_n, o_n, ROWS, VIRTUAL)
        b_cx = b_c
        if CENTRES and not ROWS:
            b_cx = centres(p_c, p_pairs, i_n, T, o_n, m_n)
        b_s = scores(m, p_m, plane, begin, n, p_n, plane, j, ZZ, D, BM, BN, BK, FRESH)
        b_d, b_l = tile_of(
            b_s, b_hm, b_hn, b_tm, b_tn, b_cx, o_m, o_n, pair, ROWS, CENTRES, VIRTUAL
        )
        b_e = exponentials(b_l, b_fm, b_fn, ROWS)
        if LAST and ROWS:
            b_sum += tl.sum(b_e * b_d, 1)
        else:
            b_u = tl.load(p_from + o_n, mask=m_n, other=0.0)[None, :]
            b_sum += tl.sum(b_e * (b_d + b_u if LAST else b_u), 1)
        if not ROWS:
            b_f0 = potentials(p_columns - (T + 1), o_n, m_n)
            b_e = exponentials(b_l, b_g0, b_f0, ROWS)
        b_all += tl.sum(b_e, 1)
    tl.store(p_to + o_m, tl.where(m_m, -b_sum / b_all, 0.0), mask=o_m <= last_m)


@triton.jit(do_not_specialize=["N", "T", "S", "spans", "iterations", "sg"])
def sinkhorn_grad_kernel(
    p_z,
    p_h,
    p_c,
    p_lx,
    p_ly,
    p_pairs,
    p_f,
    p_g,
    p_u,
    p_w,
    p_grad,  # gradient of the value, [N] with stride sg
    p_out,  # [N, T or S, CHANNELS]
    N,
    T,
    S,
    spans,
    iterations,
    sg,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PZ: tl.constexpr,
    PC: tl.constexpr,
    ZZ: tl.constexpr,
    ROWS: tl.constexpr,
    VIRTUAL: tl.constexpr,
    CONVERT: tl.constexpr,  # Triton 3.7 does not compile top()'s bits for sm_100
):
    """The gradient of the rows: 2 sum dD (row - column)."""
    CENTRES: tl.constexpr = p_c is not None
    FRESH: tl.constexpr = PC == 3
    places = spans * SPAN
    size = tl.cast(places, tl.int64) * D
    plane = size * 2 * N
    last_m, _ = of_rows(T, S, ROWS)
    blocks = tl.cdiv(last_m + 1, BM)
    chunk = tl.program_id(0) % (D // BD) * BD
    pid = tl.program_id(0) // (D // BD)
    begin = pid % blocks * BM
    i_n = (pid // blocks).to(tl.int64)
    i_m, i_o = of_rows(i_n, i_n + N, ROWS)
    end_x, end_y = bounds(p_lx, p_ly, i_n, T, S)
    end_m, end_n = of_rows(end_x, end_y, ROWS)
    o_m = begin + tl.arange(0, BM)
    m_m = real(o_m, end_m, VIRTUAL)
    pair = numbers(p_pairs, i_n)
    rate = tl.load(p_pairs + i_n * NUMBERS).to(tl.float32)  # 1 / epsilon
    p_m = p_z + i_m * size
    p_n = p_z + i_o * size
    b_hm = tl.load(p_h + i_m * places + o_m)
    b_tm = positions(p_pairs, i_n, o_m, not ROWS, VIRTUAL)
    b_c = b_tm
    if CENTRES and ROWS:
        b_c = centres(p_c, p_pairs, i_n, T, o_m, m_m)
    acc = zeros(BD // BK, BM, BK)
    b_sum = tl.zeros([BM], tl.float32)
    # The loop loads its rows again: kept planes would exceed a thread's registers.
    for j in tl.range(0, tl.where(begin < end_m, end_n, 0), BN, disable_licm=True):
        m = chunks(p_m, plane, begin, 0, 1, PZ, D, BM, BK)
        n = chunks(p_n, plane, j, 0, 1, PZ, D, BN, BK)
        o_n = j + tl.arange(0, BN)
        m_n = real(o_n, end_n, VIRTUAL)
        b_hn = tl.load(p_h + i_o * places + o_n)
        b_tn = positions(p_pairs, i_n, o_n, ROWS, VIRTUAL)
        b_cx = b_c
        if CENTRES and not ROWS:
            b_cx = centres(p_c, p_pairs, i_n, T, o_n, m_n)
        b_s = scores(m, p_m, plane, begin, n, p_n, plane, j, ZZ, D, BM, BN, BK, FRESH)
        b_d, b_l = tile_of(
            b_s, b_hm, b_hn, b_tm, b_tn, b_cx, o_m, o_n, pair, ROWS, CENTRES, VIRTUAL
        )
        p_fk = turn_of(p_f, i_n, iterations + 1, 0, T)
        p_gk = turn_of(p_g, i_n, iterations, 0, S)
        p_uk = turn_of(p_u, i_n, iterations + 1, 0, T)
        p_wk = turn_of(p_w, i_n, iterations, 0, S)
        o_x, o_y = of_rows(o_m, o_n, ROWS)
        m_x, m_y = of_rows(m_m, m_n, ROWS)
        b_fm, b_fn = of_rows(potentials(p_fk, o_x, m_x), potentials(p_gk, o_y, m_y), ROWS)
        b_w = along(tl.load(p_wk + o_y, mask=m_y, other=0.0), not ROWS)
        b_dl = exponentials(b_l, b_fm, b_fn, ROWS) * b_w
        for _k in range(1, iterations):
            p_fk += T + 1
            p_uk += T + 1
            p_wk += S + 1
            b_fm, b_fn = of_rows(potentials(p_fk, o_x, m_x), potentials(p_gk, o_y, m_y), ROWS)
            b_u = along(tl.load(p_uk + o_x, mask=m_x, other=0.0), ROWS)
            b_w = along(tl.load(p_wk + o_y, mask=m_y, other=0.0), not ROWS)
            b_dl += exponentials(b_l, b_fm, b_fn, ROWS) * (b_u + b_w)
            p_gk += S + 1
        p_fk += T + 1
        b_fm, b_fn = of_rows(potentials(p_fk, o_x, m_x), potentials(p_gk, o_y, m_y), ROWS)
        b_u = along(tl.load(p_uk + (T + 1) + o_x, mask=m_x, other=0.0), ROWS)
        b_e = exponentials(b_l, b_fm, b_fn, ROWS)  # the plan
        b_dl += b_e * (b_u + b_d)
        b_dd = b_e - b_dl * rate
        if VIRTUAL:  # their distances are constants
            b_dd = tl.where((o_m > 0)[:, None] & (o_n > 0)[None, :], b_dd, 0.0)
        dd, b_cut = cut(b_dd, PC, CONVERT)
        b_sum += tl.sum(b_cut, 1)
        if BK < D:
            n = chunks(p_n, plane, j, chunk, BD // BK, PZ, D, BN, BK)
        acc = accumulate(acc, dd, n, PC, FRESH)
    factor = tl.load(p_grad + i_n * sg) * 2.0
    m_m = m_m & (o_m > 0)
    p_rows = p_out + (i_n * last_m + o_m - 1)[:, None] * CHANNELS
    own = chunks(p_m, plane, begin, chunk, BD // BK, PZ, D, BM, BK)
    for c in tl.static_range(BD // BK):
        o_k = chunk + c * BK + tl.arange(0, BK)
        b_out = (b_sum[:, None] * whole(own[c]) - acc[c]) * factor
        b_out = tl.where(m_m[:, None], b_out, 0.0).to(p_out.dtype.element_ty)
        m_out = ((o_m > 0) & (o_m <= last_m))[:, None] & (o_k < CHANNELS)[None, :]
        tl.store(p_rows + o_k[None, :], b_out, mask=m_out)


@triton.jit
def along(b_x, ROWS: tl.constexpr):
    """Numbers of rows, or of columns, in the shape of a tile."""
    if ROWS:
        return b_x[:, None]
    else:
        return b_x[None, :]
