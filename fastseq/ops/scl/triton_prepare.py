"""Values that the other kernels of scl_loss would recompute for every tile: one launch."""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import over, split
from fastseq.ops.scl.triton_tiles import (
    CLAMPED,
    FACTOR,
    LARGEST,
    NORM_EPS,
    RECORD,
    SPAN,
    TIME,
    UNIT,
    length,
    ordered,
    valid,
)


@triton.jit(do_not_specialize=["N", "T1", "T2", "st1", "st2"])
def scl_prepare_kernel(
    p_z1,  # [N, T1, D]
    p_z2,  # [N, T2, D]
    p_t1,  # [N, T1] or None: frame indices
    p_t2,  # [N, T2] or None
    p_v1,  # None, lengths [N] or mask [N, T1]
    p_v2,  # None, lengths [N] or mask [N, T2]
    p_stats,  # [6, N, padded(T1) + padded(T2)] or None
    p_planes,  # [PLANES, N, padded(T1) + padded(T2), DP] or None: bf16 that add up to the frames
    p_tau,  # temperature; None: scale includes it
    p_var,  # variance, or None
    N,
    T1,
    T2,
    st1,  # strides between sequences of the times
    st2,
    scale,  # log2(e) / temperature
    D: tl.constexpr,
    DP: tl.constexpr,
    BK: tl.constexpr,
    PLANES: tl.constexpr,
    NORM: tl.constexpr,
    MASK: tl.constexpr,
):
    """For each frame its factor in a score, 1 / norm times the root of the scale, and its time
    relative to its unit; for each unit a record: see triton_tiles.py.

    A program processes one unit. The factor is 0 for a frame that is not real, and NaN for a real
    frame whose time is NaN, so that the loss becomes NaN.
    """
    units_1 = tl.cdiv(T1, UNIT)
    units = units_1 + tl.cdiv(T2, UNIT)
    i_n = (tl.program_id(0) // units).to(tl.int64)
    i_u = tl.program_id(0) % units
    at = (i_n * units + i_u) * UNIT  # the unit's first frame in a row of the statistics
    stride = tl.cast(N, tl.int64) * units * UNIT  # between rows of the statistics
    i_d = tl.where(i_u < units_1, 0, 1)
    i_u -= i_d * units_1
    T, _ = ordered(T1, T2, i_d)
    p_z, _ = ordered(p_z1, p_z2, i_d)
    n_1 = T1
    n_2 = T2
    p_v = p_z  # read with MASK alone
    if MASK:
        p_v, _ = ordered(p_v1, p_v2, i_d)
        p_v += i_n * T
    else:
        if p_v1 is not None:
            n_1 = length(p_v1, i_n, T1)
        if p_v2 is not None:
            n_2 = length(p_v2, i_n, T2)
    n, _ = ordered(n_1, n_2, i_d)
    o_u = tl.arange(0, UNIT)
    o_t = i_u * UNIT + o_u
    m_t = valid(p_v, o_t, n, MASK)
    scale = over(scale, p_tau)
    if p_var is not None:
        scale += over(0.0 * scale, p_var)  # NaN if the variance is invalid, so that the loss is NaN
    root = tl.sqrt(scale)
    b_sq = tl.zeros([UNIT], tl.float32)
    for k in range(0, DP, BK):
        o_k = k + tl.arange(0, BK)[None, :]
        m_z = m_t[:, None]
        if D < DP:
            m_z = m_z & (o_k < D)
        p_from = p_z + (i_n * T + i_u * UNIT) * D + (o_u[:, None] * D + o_k)
        b_z = tl.load(p_from, mask=m_z, other=0.0).to(tl.float32)
        b_sq += tl.sum(b_z * b_z, 1)
        if p_planes is not None:
            p_to = p_planes + at * DP + (o_u[:, None] * DP + o_k)
            b_h, b_m, b_l = split(b_z)
            tl.store(p_to, b_h)
            tl.store(p_to + stride * DP, b_m)
            if PLANES == 3:
                tl.store(p_to + 2 * stride * DP, b_l)
    if p_stats is not None:
        b_f = tl.full([UNIT], 1.0, tl.float32)
        if NORM:
            b_f = 1.0 / tl.maximum(tl.sqrt(b_sq), NORM_EPS)
        largest = tl.max(tl.where(m_t & (b_f < CLAMPED), b_f, 0.0), 0) * root
        b_f = tl.maximum(b_f, 1e-30) + (b_f - b_f)  # 0 means a frame that is not real; NaN stays
        b_f *= root
        if p_t1 is None:
            b_t = o_t.to(tl.int64)
        else:
            p_t, _ = ordered(p_t1 + i_n * st1, p_t2 + i_n * st2, i_d)
            b_t = tl.load(p_t + o_t, mask=m_t, other=0)
            if b_t.dtype.is_int():
                b_t = b_t.to(tl.int64)
            elif b_t.dtype != tl.float64:
                b_t = b_t.to(tl.float32)
        b_f = tl.where(b_t == b_t, b_f, float("nan"))
        m_known = m_t & (b_t == b_t)
        real = tl.max(m_known.to(tl.int32), 0)
        if b_t.dtype.is_int():
            origin = tl.min(tl.where(m_known, b_t, 2**63 - 1), 0)
        else:
            origin = tl.min(tl.where(m_known, b_t, float("inf")), 0)
        origin = tl.where(real > 0, origin, tl.zeros_like(origin))
        b_time = tl.where(m_known, (b_t - origin).to(tl.float32), float("inf"))
        span = tl.max(tl.where(m_known, b_time, -1.0), 0)
        first = origin.to(tl.float32)
        second = (origin - first.to(origin.dtype)).to(tl.float32)
        third = (origin - first.to(origin.dtype) - second.to(origin.dtype)).to(tl.float32)
        p_row = p_stats + at + o_u
        tl.store(p_row + FACTOR * stride, tl.where(m_t, b_f, 0.0))
        tl.store(p_row + TIME * stride, b_time)
        b_record = tl.where(o_u == SPAN, span, tl.where(o_u == LARGEST, largest, 0.0))
        b_record = tl.where(o_u == 0, first, tl.where(o_u == 1, second, b_record))
        tl.store(p_row + RECORD * stride, tl.where(o_u == 2, third, b_record))
