"""The Triton kernel that prepares a call of the gradient kernel for columns of another rank."""

import triton
import triton.language as tl

from fastseq.ops.scl.triton_tiles import (
    MAXIMUM,
    RECORD,
    TARGETS,
    TIME,
    UNIT,
    R,
    clock,
    keep_range,
    near_range,
    ordered,
    padded,
    spread,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["N", "T1", "T2"])
def scl_weights_kernel(
    p_stats,  # [6, N, padded(T1) + padded(T2)], some rows written by scl_prepare_kernel
    p_lse1,  # [N, T1]: log of a row's sum of exponentials over the columns of all ranks
    p_lse2,  # [N, T2]
    p_weight1,  # [N, T1]: weight of a row's loss
    p_weight2,  # [N, T2]
    p_target1,  # [N, T1]: weight over the sum of a row's targets; None: no targets
    p_target2,  # [N, T2]
    p_var,  # variance; None: rate and reach include it
    N,
    T1,
    T2,
    scale,  # log2(e) / temperature; not used with ONLINE
    rate,
    reach,
    ONLINE: tl.constexpr,
    TARGET: tl.constexpr,
):
    """The rows of p_stats that scl_stats_kernel writes if it has all columns. A program processes
    one unit."""
    units_1 = tl.cdiv(T1, UNIT)
    units = units_1 + tl.cdiv(T2, UNIT)
    i_n = (tl.program_id(0) // units).to(tl.int64)
    i_u = tl.program_id(0) % units
    stride = tl.cast(N, tl.int64) * units * UNIT
    p_sa = p_stats + i_n * units * UNIT
    p_sc = p_sa + padded(T1)
    p_row = p_sa + i_u * UNIT + tl.arange(0, UNIT)
    i_d = tl.where(i_u < units_1, 0, 1)
    row = (i_u - i_d * units_1) * UNIT
    T, _ = ordered(T1, T2, i_d)
    p_lse, _ = ordered(p_lse1, p_lse2, i_d)
    p_weight, _ = ordered(p_weight1, p_weight2, i_d)
    o_t = row + tl.arange(0, UNIT)
    m_t = o_t < T
    b_lse = tl.load(p_lse + i_n * T + o_t, mask=m_t, other=0.0) * LOG2E
    b_w = tl.load(p_weight + i_n * T + o_t, mask=m_t, other=0.0)
    m_row = b_w != 0
    if ONLINE:
        tl.store(p_row + MAXIMUM * stride, tl.where(m_row, b_lse, float("inf")))
    else:
        b_w = tl.where(m_row, b_w * tl.exp2(tl.cast(scale, tl.float32) - b_lse), 0.0)
    tl.store(p_row + R * stride, b_w)
    b_g = tl.zeros([UNIT], tl.float32)
    if p_target1 is not None:
        p_target, _ = ordered(p_target1, p_target2, i_d)
        b_g = tl.load(p_target + i_n * T + o_t, mask=m_t, other=0.0)
    tl.store(p_row + TARGETS * stride, b_g)
    if i_d == 0:
        rate, reach = spread(rate, reach, p_var, TARGET)
        p_record = p_sa + RECORD * stride
        r1, r2, r3, b_time = clock(p_sa + TIME * stride, p_record, row, o_t, padded(T1), UNIT)
        lo = tl.min(b_time, 0)
        hi = tl.max(tl.where(b_time < float("inf"), b_time, float("-inf")), 0)
        first, end = near_range(p_sc + RECORD * stride, T2, r1, r2, r3, lo, hi, reach)
        keep_range(p_record, row, padded(T1), first, end, UNIT)
