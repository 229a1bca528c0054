"""The Triton kernels of contrastive_idm. A program owns BM frames of one sequence.

The loss kernel visits each pair of blocks once: block i goes with the blocks i, i + 1, ... up to
half way around the circle of blocks, so that all programs have the same work. The gradient kernel
goes over all blocks, so that nothing is added across programs. The losses are, by the program that
ends last and in an order of its own: no float atomics, no zero-fill, the same bits every time.
README.md in this folder derives the formulas.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames, is_last


@triton.jit
def length(p_len, i_n, T):
    """Frames of sequence i_n: its length clamped to [0, T]."""
    n = T
    if p_len is not None:
        n = tl.minimum(tl.maximum(tl.load(p_len + i_n).to(tl.int64), 0), T).to(tl.int32)
    return n


@triton.jit
def centred(p_z, o_t, m_t, first, k, D: tl.constexpr, BK: tl.constexpr, CENTRE: tl.constexpr):
    """The same less those of the frame ``first``. Half precision stays as it is: its products are
    exact, its differences would be rounded again."""
    b_z = frames(p_z, o_t, m_t, k, D, BK)
    if CENTRE:
        o_k = k + tl.arange(0, BK)
        b_first = tl.load(p_z + tl.cast(first, tl.int64) * D + o_k, mask=o_k < D, other=0.0)
        b_z = tl.where(m_t[:, None], b_z - b_first[None, :], 0.0)
    return b_z


@triton.jit
def norms(p_z, o_t, m_t, first, D: tl.constexpr, BK: tl.constexpr, CENTRE: tl.constexpr):
    """Squared norms of frames."""
    b_z = centred(p_z, o_t, m_t, first, 0, D, BK, CENTRE).to(tl.float32)
    b_sq = tl.sum(b_z * b_z, 1)
    for k in range(BK, D, BK):
        b_z = centred(p_z, o_t, m_t, first, k, D, BK, CENTRE).to(tl.float32)
        b_sq += tl.sum(b_z * b_z, 1)
    return b_sq


@triton.jit
def distances(
    p_z,
    b_za,  # the rows' first BK channels, [BM, BK]
    b_na,  # their squared norms
    o_m,
    m_m,
    o_n,
    m_n,
    first,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DIRECT: tl.constexpr,
    CENTRE: tl.constexpr,
    PREC: tl.constexpr,
):
    """Distances of a tile, squared ones unless DIRECT; the columns' first channels."""
    b_zc = centred(p_z, o_n, m_n, first, 0, D, BK, CENTRE)  # [BN, BK]
    if DIRECT:
        b_e = b_za.to(tl.float32)[:, None, :] - b_zc.to(tl.float32)[None, :, :]
        b_d = tl.sum(b_e * b_e, 2)
        for k in range(BK, D, BK):
            b_zk = frames(p_z, o_m, m_m, k, D, BK).to(tl.float32)
            b_e = b_zk[:, None, :] - frames(p_z, o_n, m_n, k, D, BK).to(tl.float32)[None, :, :]
            b_d += tl.sum(b_e * b_e, 2)
        b_d = tl.sqrt(b_d)
    else:
        b_s = dot(b_za, tl.trans(b_zc), tl.zeros([BM, BN], tl.float32), PREC)
        b_nc = tl.sum(b_zc.to(tl.float32) * b_zc.to(tl.float32), 1)
        for k in range(BK, D, BK):
            b_zk = centred(p_z, o_n, m_n, first, k, D, BK, CENTRE)
            b_zm = centred(p_z, o_m, m_m, first, k, D, BK, CENTRE)
            b_s = dot(b_zm, tl.trans(b_zk), b_s, PREC)
            b_nc += tl.sum(b_zk.to(tl.float32) * b_zk.to(tl.float32), 1)
        b_d = (b_na[:, None] + b_nc[None, :]) - 2.0 * b_s
    return b_d, b_zc


@triton.jit
def times(p_t, o_t, m_t, first):
    """Times as fp32: fp32 ones as they are, indices and integers relative to the frame ``first``,
    so that gaps of large ones are exact."""
    if p_t is None:
        b_t = o_t - first
    else:
        b_t = tl.load(p_t + o_t, mask=m_t, other=0)
        if b_t.dtype != tl.float32:
            b_t = b_t.to(tl.int64) - tl.load(p_t + first).to(tl.int64)
    return tl.where(m_t, b_t.to(tl.float32), 0.0)


@triton.jit
def window_of(p_window, window, i_n):
    """The window of sequence i_n."""
    w = tl.cast(window, tl.float32)
    if p_window is not None:
        w = tl.load(p_window + i_n)
    return w


@triton.jit
def pair_losses(b_d, b_gap, window, margin, KIND: tl.constexpr, PAPER: tl.constexpr):
    """Each pair's term of the loss. Comparisons are such that a NaN distance stays NaN."""
    b_w = b_gap * b_gap + 1.0
    if KIND == "idm":
        b_pair = -b_w * b_d
    else:
        b_repel = tl.where(b_d >= margin, 0.0, margin - b_d)
        b_attract = b_d
        if KIND == "contrastive":
            b_repel *= b_w
            if PAPER:
                b_attract = b_d / b_w
        b_pair = tl.where(tl.abs(b_gap) > window, b_repel, b_attract)
    return b_pair


@triton.jit
def pair_slopes(b_d, b_gap, window, margin, KIND: tl.constexpr, PAPER: tl.constexpr):
    """Each pair's derivative by its distance."""
    b_w = b_gap * b_gap + 1.0
    if KIND == "idm":
        b_c = -b_w + 0.0 * b_d
    else:
        b_repel = tl.where(b_d >= margin, 0.0, -1.0)
        b_attract = tl.full(b_d.shape, 1.0, tl.float32)
        if KIND == "contrastive":
            b_repel *= b_w
            if PAPER:
                b_attract = 1.0 / b_w
        b_c = tl.where(tl.abs(b_gap) > window, b_repel, b_attract)
    return b_c


@triton.jit
def to_operand(b_c, BF16: tl.constexpr, PREC: tl.constexpr):
    """Slopes as the tensor cores will take them, so that they can be added up as they are taken."""
    if BF16:
        b_c = b_c.to(tl.bfloat16).to(tl.float32)
    elif PREC == "tf32":
        b_bits = (b_c.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        b_c = b_bits.to(tl.float32, bitcast=True)
    return b_c


@triton.jit(do_not_specialize=["N", "T", "st"])
def cidm_loss_kernel(
    p_z,  # [N, T, D]
    p_t,  # [N, T] or None: frame indices
    p_len,  # [N] or None
    p_window,  # [N] or None: window
    p_part,  # [N, blocks]
    p_loss,  # [N] or []
    p_coef,  # [N]
    p_ticket,  # 0, and 0 again in the end
    N,
    T,
    st,  # stride between sequences of the times
    window,
    margin,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    KIND: tl.constexpr,
    PAPER: tl.constexpr,
    DIRECT: tl.constexpr,
    CENTRE: tl.constexpr,
    PREC: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    margin = tl.cast(margin, tl.float32)
    blocks = tl.cdiv(T, BM)
    i_b = tl.program_id(0) % blocks
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    window = window_of(p_window, window, i_n)
    p_zn = p_z + i_n * T * D
    p_tn = p_t
    if p_t is not None:
        p_tn = p_t + i_n * st
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    around = tl.cdiv(n, BM)
    half = around // 2
    # Half way around an even circle the two blocks would meet twice.
    tiles = half + 1 - tl.where((around % 2 == 0) & (i_b >= half), 1, 0)
    tiles = tl.where(first < n, tiles, 0)
    b_tm = times(p_tn, o_m, m_m, first)
    b_za = centred(p_zn, o_m, m_m, first, 0, D, BK, CENTRE)
    b_na = norms(p_zn, o_m, m_m, first, D, BK, CENTRE)
    b_row = b_tm - b_tm  # NaN where a time is, which no window may hide
    for k in range(0, tiles):
        j = i_b + k
        j = tl.where(j >= around, j - around, j)
        o_n = j * BM + tl.arange(0, BM)
        m_n = o_n < n
        b_d, _ = distances(
            p_zn, b_za, b_na, o_m, m_m, o_n, m_n, first, D, BM, BM, BK, DIRECT, CENTRE, PREC
        )
        b_gap = b_tm[:, None] - times(p_tn, o_n, m_n, first)[None, :]
        b_pair = pair_losses(b_d, b_gap, window, margin, KIND, PAPER)
        m_pair = m_m[:, None] & m_n[None, :] & (o_m[:, None] != o_n[None, :])
        b_sum = tl.sum(tl.where(m_pair, b_pair, 0.0), 1)
        b_row += tl.where(k > 0, 2.0 * b_sum, b_sum)
    p_block = p_part + i_n * blocks + i_b
    tl.store(p_block, tl.sum(b_row, 0))
    if is_last(p_ticket):
        reduce(p_part, p_len, p_loss, p_coef, N, T, blocks, REDUCTION)


@triton.jit
def reduce(p_part, p_len, p_loss, p_coef, N, T, blocks, REDUCTION: tl.constexpr):
    """The loss, and the coefficients of the sequences, from the blocks of all programs."""
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
        tl.store(p_coef + o_v, b_coef, mask=m_v)
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


@triton.jit(do_not_specialize=["N", "T", "st", "sg"])
def cidm_grad_kernel(
    p_z,
    p_t,
    p_len,
    p_window,
    p_coef,  # [N]
    p_grad,  # gradient of the loss, [N] with stride sg
    p_dz,  # [N, T, D]
    N,
    T,
    st,
    sg,
    window,
    margin,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    KIND: tl.constexpr,
    PAPER: tl.constexpr,
    DIRECT: tl.constexpr,
    CENTRE: tl.constexpr,
    PREC: tl.constexpr,
):
    margin = tl.cast(margin, tl.float32)
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    BF16: tl.constexpr = p_z.dtype.element_ty == tl.bfloat16
    FP16: tl.constexpr = p_z.dtype.element_ty == tl.float16
    blocks = tl.cdiv(T, BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_n = (pid // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    window = window_of(p_window, window, i_n)
    p_zn = p_z + i_n * T * D
    p_tn = p_t
    if p_t is not None:
        p_tn = p_t + i_n * st
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    b_tm = times(p_tn, o_m, m_m, first)
    b_za = centred(p_zn, o_m, m_m, first, 0, D, BK, CENTRE)
    b_na = norms(p_zn, o_m, m_m, first, D, BK, CENTRE)

    # sum_j c_ij (z_i - z_j) = z_i sum_j c_ij - sum_j c_ij z_j
    b_sum = b_tm - b_tm
    b_acc = tl.zeros([BM, BD], tl.float32)
    for j in range(0, tl.where(first < n, tl.cdiv(n, BN), 0)):
        o_n = j * BN + tl.arange(0, BN)
        m_n = o_n < n
        b_d, b_zc = distances(
            p_zn, b_za, b_na, o_m, m_m, o_n, m_n, first, D, BM, BN, BK, DIRECT, CENTRE, PREC
        )
        b_tn = times(p_tn, o_n, m_n, first)
        b_c = pair_slopes(b_d, b_tm[:, None] - b_tn[None, :], window, margin, KIND, PAPER)
        if DIRECT:
            b_c = tl.where(b_d == 0.0, 0.0, b_c / b_d)
        m_pair = m_m[:, None] & m_n[None, :] & (o_m[:, None] != o_n[None, :])
        b_c = to_operand(tl.where(m_pair, b_c, 0.0), BF16, PREC)
        b_sum += tl.sum(b_c, 1) + tl.sum(b_tn - b_tn, 0)
        if BK < D or BK != BD:
            b_zc = centred(p_zn, o_n, m_n, first, chunk, D, BD, CENTRE)
        if FP16:
            # Weights reach T^2: beyond fp16, within tf32, which holds fp16 frames exactly.
            b_acc = dot(b_c, b_zc.to(tl.float32), b_acc, PREC)
        else:
            b_acc = dot(b_c.to(b_zc.dtype), b_zc, b_acc, PREC)

    b_zm = centred(p_zn, o_m, m_m, first, chunk, D, BD, CENTRE).to(tl.float32)
    # Each pair counts twice, and the derivative of a square is another factor 2.
    scale = tl.load(p_grad + i_n * sg) * tl.load(p_coef + i_n) * (2.0 if DIRECT else 4.0)
    b_dz = (b_zm * b_sum[:, None] - b_acc) * scale
    o_k = chunk + tl.arange(0, BD)
    p_out = p_dz + (i_n * T + o_m)[:, None] * D + o_k[None, :]
    m_out = (o_m < T)[:, None] & (o_k < D)[None, :]
    tl.store(p_out, tl.where(m_m[:, None], b_dz, 0.0).to(p_dz.dtype.element_ty), mask=m_out)
