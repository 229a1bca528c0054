"""The Triton kernels of contrastive_idm with distance="euclidean": distances from differences.

A program owns BM frames of one sequence, as in triton_kernels.py: half of the tiles forward, all of
them backward.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import dot, frames, is_last
from fastseq.ops.contrastive_idm.triton_parts import length, reduce, tiles_around, window_of


@triton.jit
def distances(
    p_z,
    b_za,  # the rows' first BK channels, [BM, BK]
    o_m,
    m_m,
    o_n,
    m_n,
    D: tl.constexpr,
    BK: tl.constexpr,
):
    """Distances of a tile."""
    b_zc = frames(p_z, o_n, m_n, 0, D, BK)  # [BN, BK]
    b_e = b_za.to(tl.float32)[:, None, :] - b_zc.to(tl.float32)[None, :, :]
    b_d = tl.sum(b_e * b_e, 2)
    for k in range(BK, D, BK):
        b_zk = frames(p_z, o_m, m_m, k, D, BK).to(tl.float32)
        b_e = b_zk[:, None, :] - frames(p_z, o_n, m_n, k, D, BK).to(tl.float32)[None, :, :]
        b_d += tl.sum(b_e * b_e, 2)
    return tl.sqrt(b_d)


@triton.jit
def pair_losses(b_d, b_gap, window, margin, KIND: tl.constexpr, PAPER: tl.constexpr):
    """Each pair's term of the loss. Comparisons are written so that a NaN distance stays NaN."""
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
    """Slopes rounded as the tensor cores read them, so that their sum matches the product."""
    if BF16:
        b_c = b_c.to(tl.bfloat16).to(tl.float32)
    elif PREC == "tf32":
        b_bits = (b_c.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        b_c = b_bits.to(tl.float32, bitcast=True)
    return b_c


@triton.jit
def centred(p_z, o_t, m_t, first, k, D: tl.constexpr, BK: tl.constexpr, CENTRE: tl.constexpr):
    """Frames minus the frame ``first``. Half precision is not centred: its products are exact, and
    its differences would be rounded again."""
    b_z = frames(p_z, o_t, m_t, k, D, BK)
    if CENTRE:
        o_k = k + tl.arange(0, BK)
        b_first = tl.load(p_z + tl.cast(first, tl.int64) * D + o_k, mask=o_k < D, other=0.0)
        b_z = tl.where(m_t[:, None], b_z - b_first[None, :], 0.0)
    return b_z


@triton.jit(do_not_specialize=["N", "T"])
def cidm_direct_loss_kernel(
    p_z,  # [N, T, D]
    p_side,  # [N, 2, frames of all blocks]: times
    p_len,  # [N] or None
    p_window,  # [N] or None: window
    p_part,  # [N, blocks]
    p_loss,  # [N] or []
    p_coef,  # [N]
    p_ticket,  # 0 before and after the launch
    N,
    T,
    window,
    margin,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    KIND: tl.constexpr,
    PAPER: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    margin = tl.cast(margin, tl.float32)
    blocks = tl.cdiv(T, BM)
    i_b = tl.program_id(0) % blocks
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    window = window_of(p_window, window, i_n)
    p_zn = p_z + i_n * T * D
    p_tn = p_side + i_n * 2 * blocks * BM
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    around, tiles = tiles_around(n, i_b, BM)
    b_tm = tl.load(p_tn + o_m, mask=m_m, other=0.0)
    b_za = frames(p_zn, o_m, m_m, 0, D, BK)
    b_row = b_tm - b_tm  # NaN where a time is NaN: no window may hide it
    for k in range(0, tiles):
        j = i_b + k
        j = tl.where(j >= around, j - around, j)
        o_n = j * BM + tl.arange(0, BM)
        m_n = o_n < n
        b_d = distances(p_zn, b_za, o_m, m_m, o_n, m_n, D, BK)
        b_gap = b_tm[:, None] - tl.load(p_tn + o_n, mask=m_n, other=0.0)[None, :]
        b_pair = pair_losses(b_d, b_gap, window, margin, KIND, PAPER)
        m_pair = m_m[:, None] & m_n[None, :] & (o_m[:, None] != o_n[None, :])
        b_sum = tl.sum(tl.where(m_pair, b_pair, 0.0), 1)
        b_row += tl.where(k > 0, 2.0 * b_sum, b_sum)
    p_block = p_part + i_n * blocks + i_b
    tl.store(p_block, tl.sum(b_row, 0))
    if is_last(p_ticket):
        reduce(p_part, p_len, p_loss, p_coef, N, T, blocks, REDUCTION)


@triton.jit(do_not_specialize=["T", "sg"])
def cidm_direct_grad_kernel(
    p_z,
    p_side,
    p_len,
    p_window,
    p_coef,  # [N]
    p_grad,  # gradient of the loss, [N] with stride sg
    p_dz,  # [N, T, D]
    T,
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
    p_tn = p_side + i_n * 2 * tl.cdiv(T, BN) * BN
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    b_tm = tl.load(p_tn + o_m, mask=m_m, other=0.0)
    b_za = frames(p_zn, o_m, m_m, 0, D, BK)

    # sum_j c_ij (z_i - z_j) = z_i sum_j c_ij - sum_j c_ij z_j
    b_sum = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, BD], tl.float32)
    for j in range(0, tl.where(first < n, tl.cdiv(n, BN), 0)):
        o_n = j * BN + tl.arange(0, BN)
        m_n = o_n < n
        b_d = distances(p_zn, b_za, o_m, m_m, o_n, m_n, D, BK)
        b_tn = tl.load(p_tn + o_n, mask=m_n, other=0.0)
        b_c = pair_slopes(b_d, b_tm[:, None] - b_tn[None, :], window, margin, KIND, PAPER)
        b_c = tl.where(b_d == 0.0, 0.0, b_c / b_d)
        m_pair = m_m[:, None] & m_n[None, :] & (o_m[:, None] != o_n[None, :])
        b_c = to_operand(tl.where(m_pair, b_c, 0.0), BF16, PREC)
        b_sum += tl.sum(b_c, 1)
        b_zc = centred(p_zn, o_n, m_n, first, chunk, D, BD, CENTRE)
        if FP16:
            # Weights reach T^2: beyond fp16, within tf32, which represents fp16 frames exactly.
            b_acc = dot(b_c, b_zc.to(tl.float32), b_acc, PREC)
        else:
            b_acc = dot(b_c.to(b_zc.dtype), b_zc, b_acc, PREC)

    b_zm = centred(p_zn, o_m, m_m, first, chunk, D, BD, CENTRE).to(tl.float32)
    # Each pair counts twice.
    scale = tl.load(p_grad + i_n * sg) * tl.load(p_coef + i_n) * 2.0
    b_dz = (b_zm * b_sum[:, None] - b_acc) * scale
    o_k = chunk + tl.arange(0, BD)
    p_out = p_dz + (i_n * T + o_m)[:, None] * D + o_k[None, :]
    m_out = (o_m < T)[:, None] & (o_k < D)[None, :]
    tl.store(p_out, tl.where(m_m[:, None], b_dz, 0.0).to(p_dz.dtype.element_ty), mask=m_out)
