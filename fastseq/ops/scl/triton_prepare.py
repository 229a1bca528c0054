"""What the other kernels of scl_loss would compute for every tile anew: a launch of its own."""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import frames
from fastseq.ops.scl.triton_tiles import UNIT, inverse_norm, length, valid


@triton.jit(do_not_specialize=["N", "T1", "T2", "st1", "st2"])
def scl_prepare_kernel(
    p_z1,  # [N, T1, D]
    p_z2,  # [N, T2, D]
    p_t1,  # [N, T1] or None: frame indices
    p_t2,  # [N, T2] or None
    p_v1,  # None, lengths [N] or mask [N, T1]
    p_v2,  # None, lengths [N] or mask [N, T2]
    p_factor,  # [N, T1 + T2]
    p_bounds,  # [2, N, units of view 1 + units of view 2] or None: earliest, latest time
    N,
    T1,
    T2,
    st1,  # strides between sequences of the times
    st2,
    scale,  # log2(e) / temperature
    D: tl.constexpr,
    BK: tl.constexpr,
    NORM: tl.constexpr,
    MASK: tl.constexpr,
):
    """The factor of each frame in a score: 1 / norm times the root of the scale.

    A program has UNIT frames. The factor is 0 of a frame that is not real, and NaN of a real one
    whose time is NaN, so that it shows.
    """
    scale = tl.cast(scale, tl.float32)
    units_1 = tl.cdiv(T1, UNIT)
    units = units_1 + tl.cdiv(T2, UNIT)
    i_u = tl.program_id(0) % units
    i_n = (tl.program_id(0) // units).to(tl.int64)
    if i_u < units_1:
        factors(
            *(p_z1, p_t1, p_v1, p_factor + i_n * (T1 + T2), p_bounds, i_n, i_u, i_u, N, units),
            *(T1, st1, scale, D, BK, NORM, MASK),
        )
    else:
        factors(
            *(p_z2, p_t2, p_v2, p_factor + i_n * (T1 + T2) + T1, p_bounds, i_n, i_u - units_1),
            *(i_u, N, units, T2, st2, scale, D, BK, NORM, MASK),
        )


@triton.jit
def factors(
    p_z,
    p_t,
    p_v,
    p_factor,
    p_bounds,
    i_n,
    i_u,  # within the view
    i_all,  # within the pair
    N,
    units,
    T,
    st,
    scale,
    D: tl.constexpr,
    BK: tl.constexpr,
    NORM: tl.constexpr,
    MASK: tl.constexpr,
):
    o_t = i_u * UNIT + tl.arange(0, UNIT)
    n = T
    p_m = p_z  # read with MASK alone
    if MASK:
        p_m = p_v + i_n * T
    elif p_v is not None:
        n = length(p_v, i_n, T)
    m_t = valid(p_m, o_t, n, MASK)
    b_f = tl.full([UNIT], 1.0, tl.float32)
    if NORM:
        b_sq = tl.zeros([UNIT], tl.float32)
        for k in range(0, D, BK):
            b_z = frames(p_z + i_n * T * D, o_t, m_t, k, D, BK).to(tl.float32)
            b_sq += tl.sum(b_z * b_z, 1)
        b_f = inverse_norm(b_sq)
    b_f *= tl.sqrt(scale)
    if p_t is not None:
        b_t = tl.load(p_t + i_n * st + o_t, mask=m_t, other=0)
        m_known = m_t & (b_t == b_t)
        b_f = tl.where(b_t == b_t, b_f, float("nan"))
        if b_t.dtype.is_floating():
            FIRST: tl.constexpr = float("-inf")
            LAST: tl.constexpr = float("inf")
        else:
            FIRST: tl.constexpr = -(2 ** (b_t.dtype.primitive_bitwidth - 1))
            LAST: tl.constexpr = 2 ** (b_t.dtype.primitive_bitwidth - 1) - 1
        p_lo = p_bounds + i_n * units + i_all
        tl.store(p_lo, tl.min(tl.where(m_known, b_t, LAST), 0))
        tl.store(p_lo + tl.cast(N, tl.int64) * units, tl.max(tl.where(m_known, b_t, FIRST), 0))
    tl.store(p_factor + o_t, tl.where(m_t, b_f, 0.0), mask=o_t < T)
