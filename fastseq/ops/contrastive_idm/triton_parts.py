"""Functions that the Triton kernels of contrastive_idm share."""

import triton
import triton.language as tl


@triton.jit
def length(p_len, i_n, T):
    """Number of frames of sequence i_n: its length clamped to [0, T]."""
    n = T
    if p_len is not None:
        n = tl.minimum(tl.maximum(tl.load(p_len + i_n).to(tl.int64), 0), T).to(tl.int32)
    return n


@triton.jit
def window_of(p_window, window, i_n):
    """The window of sequence i_n."""
    w = tl.cast(window, tl.float32)
    if p_window is not None:
        w = tl.load(p_window + i_n)
    return w


@triton.jit
def tiles_around(n, i_b, BM: tl.constexpr):
    """Number of blocks of BM frames, and how many of them block i_b visits, itself first, so that
    each pair of blocks meets once."""
    around = tl.cdiv(n, BM)
    half = around // 2
    # Half way around a circle of even length the two blocks would meet twice.
    tiles = half + 1 - tl.where((around % 2 == 0) & (i_b >= half), 1, 0)
    return around, tl.where(i_b * BM < n, tiles, 0)


@triton.jit
def reduce(p_part, p_len, p_loss, p_coef, N, T, blocks, REDUCTION: tl.constexpr):
    """The loss, and the coefficients of the sequences, from the blocks of all programs.

    The coefficient of a sequence whose loss is NaN is NaN, and so is its gradient.
    """
    BV: tl.constexpr = 16
    BB: tl.constexpr = 64
    share = 1.0
    if REDUCTION == "mean":
        b_count = tl.zeros([BV], tl.float32)
        for v in range(0, N, BV):
            o_v = v + tl.arange(0, BV)
            b_count += tl.where((o_v < N) & (lengths(p_len, o_v, o_v < N, T) > 0), 1.0, 0.0)
        share = 1.0 / tl.maximum(tl.sum(b_count, 0), 1.0)
    b_total = tl.zeros([BV], tl.float32)
    for v in range(0, N, BV):
        o_v = v + tl.arange(0, BV)
        m_v = o_v < N
        b_loss = tl.zeros([BV, BB], tl.float32)
        for b in range(0, blocks, BB):
            o_b = b + tl.arange(0, BB)[None, :]
            p_v = p_part + o_v.to(tl.int64)[:, None] * blocks + o_b
            b_loss += tl.load(p_v, mask=m_v[:, None] & (o_b < blocks), other=0.0)
        b_sum = tl.sum(b_loss, 1)
        b_coef = tl.full([BV], 1.0, tl.float32)
        if REDUCTION == "mean":
            b_n = lengths(p_len, o_v, m_v, T).to(tl.float32)
            b_coef = share / tl.maximum(b_n * b_n, 1.0)
        b_sum *= b_coef
        b_total += b_sum
        tl.store(p_coef + o_v, tl.where(b_sum != b_sum, b_sum, b_coef), mask=m_v)
        if REDUCTION == "none":
            tl.store(p_loss + o_v, b_sum, mask=m_v)
    if REDUCTION != "none":
        tl.store(p_loss, tl.sum(b_total, 0))


@triton.jit
def lengths(p_len, o_v, m_v, T):
    b_n = tl.zeros_like(o_v) + T
    if p_len is not None:
        b_len = tl.load(p_len + o_v, mask=m_v, other=0).to(tl.int64)
        b_n = tl.minimum(tl.maximum(b_len, 0), T).to(tl.int32)
    return b_n
