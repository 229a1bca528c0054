"""The Triton kernels of sinkhorn_alignment's forward. triton_tiles.py defines places and suffixes.

A program owns BM rows of one side of a pair and walks over the other side in tiles of BN columns.
Nothing T x S is stored: each pass forms the distances again. No atomics: the same bits every time.
"""

import triton
import triton.language as tl

from fastseq.ops.sinkhorn.triton_tiles import (
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
from fastseq.ops.tcc.triton_pack import either, exactly
from fastseq.ops.tcc.triton_tiles import SPAN, chunks, scores


@triton.jit(do_not_specialize=["N", "T", "S", "spans", "iterations"])
def sinkhorn_pack_kernel(
    p_x,  # [N, T, CHANNELS]
    p_y,  # [N, S, CHANNELS]
    p_lx,  # [N] or None: lengths
    p_ly,
    p_centre,  # [N, CHANNELS], subtracted from both sides, or None
    p_z,  # [P, 2 N, places, D]
    p_h,  # [2 N, places]: squared norms
    p_f,  # [N, iterations + 1, T + 1]: its turn 0 is the start; or None
    N,
    T,
    S,
    spans,  # places over SPAN
    iterations,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    ZZ: tl.constexpr,  # orders of products, see multiply()
    BT: tl.constexpr,
    BK: tl.constexpr,
    VIRTUAL: tl.constexpr,
):
    places = spans * SPAN
    blocks = places // BT
    i_s = (tl.program_id(0) // blocks).to(tl.int64)
    second = i_s >= N
    i_n = tl.where(second, i_s - N, i_s)
    end_x, end_y = bounds(p_lx, p_ly, i_n, T, S)
    end = either(end_x, end_y, second)
    p_from = either(p_x + i_n * T * CHANNELS, p_y + i_n * S * CHANNELS, second)
    o_p = tl.program_id(0) % blocks * BT + tl.arange(0, BT)
    m_p = (o_p > 0) & (o_p < end)
    o_row = (o_p.to(tl.int64) - 1)[:, None] * CHANNELS
    plane = tl.cast(N, tl.int64) * 2 * places * D
    b_h = tl.zeros([BT], tl.float32)
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)
        m_k = o_k < CHANNELS
        b_z = tl.load(p_from + o_row + o_k[None, :], mask=m_p[:, None] & m_k[None, :], other=0.0)
        b_z = b_z.to(tl.float32)
        if p_centre is not None:
            b_c = tl.load(p_centre + i_n * CHANNELS + o_k, mask=m_k, other=0.0)
            b_z = tl.where(m_p[:, None], b_z - b_c[None, :], 0.0)
        planes = exactly(b_z, P)
        # The terms that scores() adds: what it leaves out then cancels in small distances.
        b_sq = tl.zeros([BT, BK], tl.float32)
        for i in tl.static_range(P):
            for j in tl.static_range(P):
                if P - 1 - i + j < ZZ:
                    b_sq += planes[P - 1 - i].to(tl.float32) * planes[j].to(tl.float32)
        b_h += tl.sum(b_sq, 1)
        p_to = p_z + (i_s * places + o_p)[:, None] * D + o_k[None, :]
        for i in tl.static_range(P):
            tl.store(p_to + i * plane, planes[i])
    tl.store(p_h + i_s * places + o_p, b_h)
    if p_f is not None:
        rows = end - (0 if VIRTUAL else 1)
        b_f = tl.zeros([BT], tl.float32) - tl.log2(tl.maximum(rows, 1).to(tl.float32))
        b_f = tl.where(real(o_p, end, VIRTUAL), b_f, float("-inf"))
        m_f = (o_p <= T) & (i_s < N)
        tl.store(turn_of(p_f, i_n, iterations + 1, 0, T) + o_p, b_f, mask=m_f)


@triton.jit(do_not_specialize=["N", "T", "S", "spans", "iterations", "k"])
def sinkhorn_potential_kernel(
    p_z,
    p_h,
    p_c,  # [N, T] or None: centres of the second prior
    p_lx,
    p_ly,
    p_pairs,  # [N, NUMBERS]
    p_f,  # [N, iterations + 1, T + 1]
    p_g,  # [N, iterations, S + 1]
    p_mean,  # [N, T + 1]: mean distance of each row under its softmax; or None
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
    FIRST: tl.constexpr,
):
    """Half of iteration k, 1 to K: f_k from g_k if ROWS, otherwise g_k from f_{k-1}.

    Exponents are relative to the same potential one iteration earlier. No sum of exponentials is
    then above 1, or below 1 / (N' M'): see README.md. The first iteration needs a running maximum.
    """
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
    p_fk = turn_of(p_f, i_n, iterations + 1, k - 1, T)
    p_gk = turn_of(p_g, i_n, iterations, k - 1 if ROWS else k - 2, S)
    p_before, p_from = of_rows(p_fk, p_gk, ROWS)
    o_m = begin + tl.arange(0, BM)
    m_m = real(o_m, end_m, VIRTUAL)
    pair = numbers(p_pairs, i_n)
    p_m = p_z + i_m * size
    p_n = p_z + i_o * size
    m = chunks(p_m, plane, begin, 0, KEPT, PZ, D, BM, BK)
    b_hm = tl.load(p_h + i_m * places + o_m)
    b_tm = positions(p_pairs, i_n, o_m, not ROWS, VIRTUAL)
    b_c = b_tm
    if CENTRES and ROWS:
        b_c = centres(p_c, p_pairs, i_n, T, o_m, m_m)
    b_ref = tl.full([BM], float("-inf"), tl.float32)
    if not FIRST:
        b_ref = potentials(p_before, o_m, m_m)
    b_sum = tl.zeros([BM], tl.float32)
    b_far = tl.zeros([BM], tl.float32)
    for j in range(0, tl.where(begin < end_m, end_n, 0), BN):
        n = chunks(p_n, plane, j, 0, KEPT, PZ, D, BN, BK)
        o_n = j + tl.arange(0, BN)
        m_n = real(o_n, end_n, VIRTUAL)
        b_from = potentials(p_from, o_n, m_n)
        b_hn = tl.load(p_h + i_o * places + o_n)
        b_tn = positions(p_pairs, i_n, o_n, ROWS, VIRTUAL)
        b_cx = b_c
        if CENTRES and not ROWS:
            b_cx = centres(p_c, p_pairs, i_n, T, o_n, m_n)
        b_s = scores(m, p_m, plane, begin, n, p_n, plane, j, ZZ, D, BM, BN, BK, FRESH)
        b_d, b_l = tile_of(
            b_s, b_hm, b_hn, b_tm, b_tn, b_cx, o_m, o_n, pair, ROWS, CENTRES, VIRTUAL
        )
        if FIRST:
            b_x = b_l + b_from[None, :]
            b_top = tl.maximum(b_ref, tl.max(b_x, 1))
            b_down = tl.exp2(b_ref - b_top)
            b_sum *= b_down
            b_far *= b_down
            b_ref = b_top
            b_e = tl.exp2(b_x - b_ref[:, None])
        else:
            b_e = exponentials(b_l, b_ref, b_from, ROWS)
        b_sum += tl.sum(b_e, 1)
        if p_mean is not None:
            b_far += tl.sum(b_e * b_d, 1)
    m_out = o_m <= last_m
    count = tl.maximum(end_m - (0 if VIRTUAL else 1), 1)
    b_new = -tl.log2(count.to(tl.float32)) - tl.log2(b_sum)
    b_new = tl.where(m_m, b_new - b_ref if FIRST else b_new + b_ref, float("-inf"))
    p_fk = turn_of(p_f, i_n, iterations + 1, k, T)
    p_gk = turn_of(p_g, i_n, iterations, k - 1, S)
    p_to, _ = of_rows(p_fk, p_gk, ROWS)
    tl.store(p_to + o_m, b_new, mask=m_out)
    if p_mean is not None:
        p_row = p_mean + i_n * (T + 1)
        tl.store(p_row + o_m, tl.where(m_m, b_far / b_sum, 0.0), mask=m_out)


@triton.jit(do_not_specialize=["T", "S"])
def sinkhorn_value_kernel(
    p_mean,  # [N, T + 1]
    p_lx,
    p_ly,
    p_value,  # [N]
    T,
    S,
    BT: tl.constexpr,
    VIRTUAL: tl.constexpr,
):
    """The mean over the rows of their mean distances: each row has the same weight in the plan."""
    i_n = tl.program_id(0).to(tl.int64)
    end, _ = bounds(p_lx, p_ly, i_n, T, S)
    b_sum = tl.zeros([BT], tl.float32)
    for t in range(0, end, BT):
        o_p = t + tl.arange(0, BT)
        b_sum += tl.load(p_mean + i_n * (T + 1) + o_p, mask=o_p < end, other=0.0)
    count = tl.maximum(end - (0 if VIRTUAL else 1), 1)
    tl.store(p_value + i_n, tl.sum(b_sum, 0) / count.to(tl.float32))
