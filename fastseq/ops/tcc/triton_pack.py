"""Triton kernels around tcc_loss's cycles: pack the inputs, reduce row losses to the loss."""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import over
from fastseq.ops.tcc.triton_tiles import SPAN, whole


@triton.jit
def either(a, b, second):
    if second:  # noqa: SIM108
        r = b
    else:
        r = a
    return r


@triton.jit
def length(p_len, i_n, T):
    """Number of frames of sequence i_n: its length clamped to [0, T]."""
    n = T
    if p_len is not None:
        n = tl.minimum(tl.maximum(tl.load(p_len + i_n).to(tl.int64), 0), T).to(tl.int32)
    return n


@triton.jit
def lengths(p_len, o_v, m_v, T):
    b_n = tl.zeros_like(o_v) + T
    if p_len is not None:
        b_len = tl.load(p_len + o_v, mask=m_v, other=0).to(tl.int64)
        b_n = tl.minimum(tl.maximum(b_len, 0), T).to(tl.int32)
    return tl.where(m_v, b_n, 0).to(tl.int64)


@triton.jit
def exactly(b_x, P: tl.constexpr):
    """split() for frames, which may be infinite or close to it: non-finite numbers stay as they
    are."""
    planes = (b_x.to(tl.bfloat16),)
    for i in tl.static_range(1, P):
        b_top = planes[i - 1].to(tl.float32)
        b_x = tl.where(tl.abs(b_top) < float("inf"), b_x - b_top, 0.0)
        planes += (b_x.to(tl.bfloat16),)
    return planes


@triton.jit
def add_frames(p_z, n, st, sd, k, b_sum, D: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr):
    """Add the first n frames' channels k to k + BK to b_sum [BT, BK]."""
    o_k = k + tl.arange(0, BK)
    for t in range(0, n, BT):
        o_t = t + tl.arange(0, BT)
        p_tile = p_z + o_t.to(tl.int64)[:, None] * st + o_k.to(tl.int64)[None, :] * sd
        m_tile = (o_t < n)[:, None] & (o_k < D)[None, :]
        b_sum += tl.load(p_tile, mask=m_tile, other=0.0)
    return b_sum


@triton.jit(do_not_specialize=["N", "T1", "T2", "sxn", "sxt", "syn", "syt"])
def tcc_centre_kernel(
    p_x,  # [N, T1, D], any strides
    p_y,  # [N, T2, D]
    p_lx,  # [N] or None
    p_ly,
    p_centre,  # [N, D], mean real frame of the pair; without y [1, D], of the batch
    N,
    T1,
    T2,
    sxn,
    sxt,
    sxd,
    syn,
    syt,
    syd,
    D: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PAIRS: tl.constexpr,
):
    CHUNKS: tl.constexpr = (D + BK - 1) // BK
    k = tl.program_id(0) % CHUNKS * BK
    i_c = tl.program_id(0) // CHUNKS
    b_sum = tl.zeros([BT, BK], tl.float32)
    count = 0
    for i in range(i_c, i_c + 1 if PAIRS else N):
        i_n = tl.cast(i, tl.int64)
        n = length(p_lx, i_n, T1)
        b_sum = add_frames(p_x + i_n * sxn, n, tl.cast(sxt, tl.int64), sxd, k, b_sum, D, BT, BK)
        count += n
        if PAIRS:
            n = length(p_ly, i_n, T2)
            b_sum = add_frames(p_y + i_n * syn, n, tl.cast(syt, tl.int64), syd, k, b_sum, D, BT, BK)
            count += n
    o_k = k + tl.arange(0, BK)
    b_centre = tl.sum(b_sum, 0) / tl.maximum(count, 1).to(tl.float32)
    tl.store(p_centre + tl.cast(i_c, tl.int64) * D + o_k, b_centre, mask=o_k < D)


@triton.jit(
    do_not_specialize=["N", "T1", "T2", "spans", "sxn", "sxt", "syn", "syt", "stx", "sty", "sg"]
)
def tcc_pack_kernel(
    p_x,  # [N, T1, CHANNELS], any strides
    p_y,  # [N, T2, CHANNELS]
    p_tx,  # [N, T1] or None: frame indices
    p_ty,
    p_lx,
    p_ly,
    p_dx,  # [N] or None: real frames
    p_dy,
    p_centre,  # [N or 1, CHANNELS] or None
    p_grad,  # gradient of the loss, [N] with stride sg, or None: 1
    p_z,  # [P, M, T, D], filled up with zeros
    p_bias,  # [M, T]: added to scores against the frame, base 2; padded: -inf
    p_t,  # [M, T]
    p_len,  # [M]
    p_seq,  # [3, M]: factor of times, least variance, weight of a cycle
    p_tau,  # temperature; None: unit includes it
    N,
    T1,
    T2,
    spans,  # T over SPAN
    sxn,
    sxt,
    sxd,
    syn,
    syt,
    syd,
    stx,
    sty,
    sg,
    unit,  # factor of squared norms, log2(e) / (D tau); 0: no distances
    floor,  # least variance in squared durations
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,  # planes
    BT: tl.constexpr,
    BK: tl.constexpr,
    PAIRS: tl.constexpr,
    SHARES: tl.constexpr,  # times are divided by the duration
    REDUCTION: tl.constexpr,
):
    unit = over(unit, p_tau)
    T = spans * SPAN
    blocks = T // BT
    M = tl.num_programs(0) // blocks
    i_b = tl.program_id(0) % blocks
    i_m = (tl.program_id(0) // blocks).to(tl.int64)
    second = i_m >= N
    i_n = tl.where(second, i_m - N, i_m)
    n_x = length(p_lx, i_n, T1)
    n_y = length(p_ly, i_n, T2)
    n = either(n_x, n_y, second)
    p_from = either(p_x + i_n * sxn, p_y + i_n * syn, second)
    st = either(tl.cast(sxt, tl.int64), tl.cast(syt, tl.int64), second)
    sd = either(tl.cast(sxd, tl.int64), tl.cast(syd, tl.int64), second)
    o_t = i_b * BT + tl.arange(0, BT)
    m_t = o_t < n

    b_sq = tl.zeros([BT], tl.float32)
    for k in range(0, D, BK):
        o_k = k + tl.arange(0, BK)
        m_k = o_k < CHANNELS
        p_tile = p_from + o_t.to(tl.int64)[:, None] * st + o_k.to(tl.int64)[None, :] * sd
        b_z = tl.load(p_tile, mask=m_t[:, None] & m_k[None, :], other=0.0)
        if p_centre is not None:
            b_c = tl.load(p_centre + (i_n * CHANNELS if PAIRS else 0) + o_k, mask=m_k, other=0.0)
            b_z = tl.where(m_t[:, None], b_z - b_c[None, :], 0.0)
        planes = exactly(b_z.to(tl.float32), P)
        b_z = whole(planes)
        b_sq += tl.sum(b_z * b_z, 1)
        p_to = p_z + (i_m * T + o_t)[:, None] * D + o_k[None, :]
        for i in tl.static_range(P):
            tl.store(p_to + tl.cast(M, tl.int64) * i * T * D, planes[i])
    tl.store(p_bias + i_m * T + o_t, tl.where(m_t, -b_sq * unit, float("-inf")))

    if p_tx is None:
        b_t = o_t.to(tl.float32)
    else:
        # Integers relative to the sequence's first time: gaps between large numbers are exact.
        p_time = either(p_tx + i_n * stx, p_ty + i_n * sty, second)
        b_t = tl.load(p_time + o_t, mask=m_t, other=0)
        if b_t.dtype != tl.float32:
            b_t = b_t.to(tl.int64) - tl.load(p_time, mask=n > 0, other=0).to(tl.int64)
    tl.store(p_t + i_m * T + o_t, tl.where(m_t, b_t.to(tl.float32), 0.0))

    if i_b == 0:
        duration_x = tl.maximum(n_x, 1).to(tl.float32)
        if p_dx is not None:
            duration_x = tl.load(p_dx + i_n)
        duration_y = tl.maximum(n_y, 1).to(tl.float32)
        if p_dy is not None:
            duration_y = tl.load(p_dy + i_n)
        duration = either(duration_x, duration_y, second)
        if SHARES:
            scale = 1.0 / duration
            least = tl.cast(floor, tl.float32)
        else:
            scale = 1.0
            least = floor * duration * duration
        weight = 1.0
        if REDUCTION == "mean":
            weight = 1.0 / tl.maximum(cycles(p_lx, p_ly, N, T1, T2, PAIRS), 1).to(tl.float32)
        if p_grad is not None:
            weight *= tl.load(p_grad + i_n * sg)
        tl.store(p_len + i_m, n)
        tl.store(p_seq + i_m, scale)
        tl.store(p_seq + M + i_m, least)
        tl.store(p_seq + 2 * M + i_m, weight)


@triton.jit
def cycles(p_lx, p_ly, N, T1, T2, PAIRS: tl.constexpr):
    """Number of frames that start a cycle."""
    BV: tl.constexpr = 64
    b_count = tl.zeros([BV], tl.int64)
    b_some = tl.zeros([BV], tl.int64)
    for v in range(0, N, BV):
        o_v = v + tl.arange(0, BV)
        b_x = lengths(p_lx, o_v, o_v < N, T1)
        if PAIRS:
            b_y = lengths(p_ly, o_v, o_v < N, T2)
            b_count += tl.where((b_x > 0) & (b_y > 0), b_x + b_y, 0)
        else:
            b_count += b_x
            b_some += (b_x > 0).to(tl.int64)
    count = tl.sum(b_count, 0)
    if not PAIRS:
        count *= tl.maximum(tl.sum(b_some, 0) - 1, 0)
    return count


@triton.jit(do_not_specialize=["N", "hops", "blocks"])
def tcc_reduce_kernel(
    p_part,  # [hops, N, blocks]: losses of row blocks
    p_weight,  # [N]
    p_loss,  # [N] or []
    N,
    hops,  # from each sequence, or pair
    blocks,
    REDUCTION: tl.constexpr,
    BV: tl.constexpr,
    BB: tl.constexpr,
):
    b_total = tl.zeros([BV], tl.float32)
    for v in range(0, N, BV):
        o_v = v + tl.arange(0, BV)
        m_v = o_v < N
        b_loss = tl.zeros([BV, BB], tl.float32)
        for i in range(0, hops):
            p_v = p_part + (tl.cast(i, tl.int64) * N + o_v)[:, None] * blocks  # [BV, 1]
            for b in range(0, blocks, BB):
                o_b = b + tl.arange(0, BB)[None, :]
                b_loss += tl.load(p_v + o_b, mask=m_v[:, None] & (o_b < blocks), other=0.0)
        b_sum = tl.sum(b_loss, 1)
        b_total += b_sum
        if REDUCTION == "none":
            tl.store(p_loss + o_v, b_sum, mask=m_v)
    if REDUCTION != "none":
        tl.store(p_loss, tl.sum(b_total, 0) * tl.load(p_weight))
