"""The Triton kernels of contrastive_idm with squared distances.

A program owns BM frames of one sequence; triton_operands.py prepares the data that it loads. The
loss kernel visits each pair of blocks once: block i meets the blocks i, i + 1, ... up to half way
around the circle of blocks, so that all programs have the same work. The gradient kernel visits all
blocks, so that programs never add to each other's rows. The last program to finish sums the losses
in a fixed order: no float atomics, no zero-fill, the same bits every time. Both kernels have two
loops: over tiles that may contain pairs within the window, and over tiles that contain none.
README.md in this folder derives the formulas.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import INTERPRET, dot, is_last
from fastseq.ops.contrastive_idm.triton_operands import (
    centred,
    dot_planes,
    extent,
    planes,
    products,
    split,
)
from fastseq.ops.contrastive_idm.triton_parts import length, reduce, tiles_around, window_of


@triton.jit
def reciprocal(b_x):
    """1 / x to one unit in the last place; Triton's division would scale both sides first."""
    if INTERPRET:
        b_y = 1.0 / b_x
    else:
        b_y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [b_x], dtype=tl.float32, is_pure=True, pack=1
        )
    return b_y


@triton.jit
def open_hinge(b_s):
    """max(s, 0), and NaN where s is NaN."""
    return tl.maximum(b_s, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def row_sums(b_c, c0, b_ones, b_sum, PLANES: tl.constexpr):
    """Sums of slopes as rounded for the product, in as many equal columns as b_sum has. For half
    precision the tensor cores compute these sums too."""
    if PLANES == 1:
        b_sum = dot(c0, b_ones, b_sum, "tf32")
    else:
        b_sum += tl.sum(b_c, 1)[:, None]
    return b_sum


@triton.jit
def added(b_sum, b_x, PLANES: tl.constexpr):
    """b_sum plus a tile of as many columns, or plus the row sums of the tile."""
    if PLANES == 1:
        b_sum += b_x
    else:
        b_sum += tl.sum(b_x, 1)[:, None]
    return b_sum


@triton.jit
def near_blocks(p_span, o_b, m_b, low, high, window):
    """Which blocks may have frames within the window of the times from low to high. Rounding is
    monotone: if these gaps exceed the window, so do all gaps between the two blocks' frames."""
    b_low = tl.load(p_span + 2 * o_b, mask=m_b, other=0.0)
    b_high = tl.load(p_span + 2 * o_b + 1, mask=m_b, other=0.0)
    return m_b & ~((b_low - high > window) | (low - b_high > window))


@triton.jit(do_not_specialize=["N", "T"])
def cidm_loss_kernel(
    p_z,  # [N, T, D]
    p_side,  # [N, 2, frames of all blocks]
    p_span,  # [N, blocks, 2]
    p_planes,  # [N, PLANES, frames of all blocks, D], or None for half precision
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
    PLANES: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    half_margin = 0.5 * tl.cast(margin, tl.float32)
    blocks = tl.cdiv(T, BM)
    i_b = tl.program_id(0) % blocks
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    window = window_of(p_window, window, i_n)
    p_zn = p_z + i_n * T * D
    p_time = p_side + i_n * 2 * blocks * BM
    p_norm = p_time + blocks * BM
    p_rows = p_zn
    stride = tl.cast(blocks, tl.int64) * BM * D
    if PLANES > 1:
        p_rows = p_planes + i_n * PLANES * stride
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    around, tiles = tiles_around(n, i_b, BM)
    b_tm = tl.load(p_time + o_m, mask=m_m, other=0.0)
    b_norm = -tl.load(p_norm + o_m, mask=m_m, other=float("inf"))
    x0, x1, x2 = planes(p_rows, stride, o_m, n, 0, D, BK, PLANES)
    # With sorted times, the tiles within the window come first.
    near = tl.minimum(tiles, 1)
    if PLANES == 3:  # limited by tensor cores: one loop, to save registers
        near = tiles
    elif KIND != "idm":
        low, high = extent(b_tm, m_m)
        for k in range(0, tiles, 64):
            o_k = k + tl.arange(0, 64)
            o_b = i_b + o_k
            o_b = tl.where(o_b >= around, o_b - around, o_b)
            m_k = near_blocks(p_span + i_n * 2 * blocks, o_b, o_k < tiles, low, high, window)
            near = tl.maximum(near, tl.max(tl.where(m_k, o_k + 1, 0), 0))

    o_c = tl.arange(0, BM)
    # Half precision sums single pairs; float32 has no registers for that.
    b_loss = tl.zeros(
        [BM, BM if PLANES == 1 else 1], tl.float32
    )  # a quarter of the sum: half distances, half of the pairs
    for k in range(0, near):
        j = i_b + k
        j = tl.where(j >= around, j - around, j)
        b_s, b_col, _, _, _ = products(
            p_zn, p_rows, stride, p_norm, x0, x1, x2, o_m, j * BM, n, first, BM, D, BK, PLANES
        )
        b_s += b_norm[:, None] - b_col[None, :]
        b_gap = b_tm[:, None] - tl.load(p_time + j * BM + o_c)[None, :]
        b_w = b_gap * b_gap + 1.0
        if KIND == "idm":
            b_pair = b_w * b_s
        else:
            b_pair = -b_s
            b_far = open_hinge(b_s + half_margin)
            if KIND == "contrastive":
                b_far *= b_w
                if PAPER:
                    b_pair *= reciprocal(b_w)
            b_pair = tl.where(tl.abs(b_gap) > window, b_far, b_pair)
        # A block paired with itself: each pair once.
        b_after = tl.where(k > 0, -1, o_m - first)
        m_pair = (o_c < n - j * BM)[None, :] & (o_c[None, :] > b_after[:, None])
        b_loss = added(b_loss, tl.where(m_pair, b_pair, 0.0), PLANES)
    if PLANES < 3:
        if KIND != "idm":
            b_norm += half_margin
        for k in range(near, tiles):
            j = i_b + k
            j = tl.where(j >= around, j - around, j)
            b_pair, b_col, _, _, _ = products(
                p_zn, p_rows, stride, p_norm, x0, x1, x2, o_m, j * BM, n, first, BM, D, BK, PLANES
            )
            b_pair += b_norm[:, None] - b_col[None, :]
            if KIND == "idm":
                b_pair = tl.where((o_c < n - j * BM)[None, :], b_pair, 0.0)
            else:
                b_pair = open_hinge(b_pair)
            if KIND != "sfa":
                b_gap = b_tm[:, None] - tl.load(p_time + j * BM + o_c)[None, :]
                b_pair *= b_gap * b_gap + 1.0
            b_loss = added(b_loss, b_pair, PLANES)
    b_row = tl.where(m_m, 4.0 * tl.sum(b_loss, 1), 0.0)
    b_row += b_tm - b_tm  # NaN where a time is NaN: no window may hide it
    p_block = p_part + i_n * blocks + i_b
    tl.store(p_block, tl.sum(b_row, 0))
    if is_last(p_ticket):
        reduce(p_part, p_len, p_loss, p_coef, N, T, blocks, REDUCTION)


@triton.jit
def unit_of(low, high):
    """A power of two, at most 1, that scales the times' span below 128."""
    bits = (high - low).to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum((bits >> 23) - 133, 0), 60)
    return ((127 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["T", "sg"])
def cidm_grad_kernel(
    p_z,
    p_side,
    p_span,
    p_planes,
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
    PLANES: tl.constexpr,
):
    half_margin = 0.5 * tl.cast(margin, tl.float32)
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    FP16: tl.constexpr = p_z.dtype.element_ty == tl.float16
    blocks = tl.cdiv(T, BM)
    chunk = tl.program_id(0) % CHUNKS * BD
    pid = tl.program_id(0) // CHUNKS
    i_b = pid % blocks
    i_n = (pid // blocks).to(tl.int64)
    n = length(p_len, i_n, T)
    window = window_of(p_window, window, i_n)
    p_zn = p_z + i_n * T * D
    columns = tl.cdiv(T, BN)
    p_time = p_side + i_n * 2 * columns * BN
    p_norm = p_time + columns * BN
    p_rows = p_zn
    stride = tl.cast(columns, tl.int64) * BN * D
    if PLANES > 1:
        p_rows = p_planes + i_n * PLANES * stride
    first = i_b * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < n
    b_tm = tl.load(p_time + o_m, mask=m_m, other=0.0)
    # A hinge is open where the product exceeds this plus the column's half norm.
    b_open = tl.load(p_norm + o_m, mask=m_m, other=float("inf")) - half_margin
    x0, x1, x2 = planes(p_rows, stride, o_m, n, 0, D, BK, PLANES)
    tiles = tl.where(first < n, tl.cdiv(n, BN), 0)
    # The rows' own tiles, extended to the first and the last tile within the window.
    begin = tl.minimum(first // BN, tiles)
    end = tl.minimum((first + BM + BN - 1) // BN, tiles)
    low, high = extent(b_tm, m_m)
    if PLANES > 1:
        begin, end = tiles * 0, tiles
    elif KIND != "idm" or FP16:
        least, most = low, high
        for k in range(0, tiles, 64):
            o_b = k + tl.arange(0, 64)
            m_b = o_b < tiles
            p_sp = p_span + i_n * 2 * columns
            if KIND != "idm":
                m_k = near_blocks(p_sp, o_b, m_b, least, most, window)
                begin = tl.minimum(begin, tl.min(tl.where(m_k, o_b, tiles), 0))
                end = tl.maximum(end, tl.max(tl.where(m_k, o_b + 1, 0), 0))
            if FP16:
                b_low = tl.load(p_sp + 2 * o_b, mask=m_b, other=float("inf"))
                b_high = tl.load(p_sp + 2 * o_b + 1, mask=m_b, other=float("-inf"))
                low = tl.minimum(low, tl.min(b_low, 0))
                high = tl.maximum(high, tl.max(b_high, 0))
    # Weights reach T^2, beyond fp16: they are computed in a unit of time that bounds them.
    unit = 1.0
    if FP16 and KIND != "sfa":
        unit = unit_of(low, high)
        b_tm *= unit
        window *= unit
    one = unit * unit

    # sum_j c_ij (z_i - z_j) = z_i sum_j c_ij - sum_j c_ij z_j
    o_c = tl.arange(0, BN)
    b_ones = tl.full([BN, 16], 1.0, tl.float32).to(p_z.dtype.element_ty)
    ONES: tl.constexpr = 16 if PLANES == 1 else 1
    b_sum = tl.zeros([BM, ONES], tl.float32)
    b_acc = tl.zeros([BM, BD], tl.float32)
    for k in range(0, end - begin):
        j = begin + k
        b_s, b_col, y0, y1, y2 = products(
            p_zn, p_rows, stride, p_norm, x0, x1, x2, o_m, j * BN, n, first, BN, D, BK, PLANES
        )
        b_gap = b_tm[:, None] - unit * tl.load(p_time + j * BN + o_c)[None, :]
        b_w = b_gap * b_gap + one
        # Relative to the tile: absolute frame numbers would be kept in registers from the loop turn
        # that loads them.
        m_pair = (o_c < n - j * BN)[None, :] & ((o_m - j * BN)[:, None] != o_c[None, :])
        if KIND == "idm":
            b_c = -b_w
        elif KIND == "sfa":
            b_c = tl.where(b_s > b_open[:, None] + b_col[None, :], -1.0, 0.0)
        else:
            b_c = tl.where(b_s > b_open[:, None] + b_col[None, :], -b_w, 0.0)
        if KIND != "idm":
            b_near = tl.full([BM, BN], 1.0, tl.float32)
            if KIND == "contrastive" and PAPER:
                b_near = one * reciprocal(b_w)
            m_far = tl.abs(b_gap) > window
            if FP16:
                b_near = tl.where(m_pair & ~m_far, b_near * 16384.0, 0.0)
                b_c = tl.where(m_far, b_c, 0.0)
            else:
                b_c = tl.where(m_far, b_c, b_near)
        b_c = tl.where(m_pair, b_c, 0.0)
        if BK < D or BK != BD:
            y0, y1, y2 = split(centred(p_zn, j * BN + o_c, n, first, chunk, D, BD, PLANES), PLANES)
        c0, c1, c2 = split(b_c.to(p_z.dtype.element_ty), PLANES)
        b_acc = dot_planes(c0, c1, c2, y0, y1, y2, b_acc, PLANES)
        b_sum = row_sums(b_c, c0, b_ones, b_sum, PLANES)
        if FP16 and KIND != "idm":
            b_near = b_near.to(tl.float16)
            b_acc += dot(b_near, y0, tl.zeros([BM, BD], tl.float32), "tf32") * (one / 16384.0)
            b_sum += dot(b_near, b_ones, tl.zeros([BM, 16], tl.float32), "tf32") * (one / 16384.0)
    if PLANES == 1:
        for k in range(0, tiles - (end - begin)):
            j = tl.where(k < begin, k, k + (end - begin))
            b_s, b_col, y0, y1, y2 = products(
                p_zn, p_rows, stride, p_norm, x0, x1, x2, o_m, j * BN, n, first, BN, D, BK, PLANES
            )
            b_c = tl.full([BM, BN], -1.0, tl.float32)
            if KIND != "sfa":
                b_gap = b_tm[:, None] - unit * tl.load(p_time + j * BN + o_c)[None, :]
                b_c = -(b_gap * b_gap + one)
            if KIND == "idm":
                b_c = tl.where((o_c < n - j * BN)[None, :], b_c, 0.0)
            else:
                b_c = tl.where(b_s > b_open[:, None] + b_col[None, :], b_c, 0.0)
            if BK < D or BK != BD:
                y0, y1, y2 = split(
                    centred(p_zn, j * BN + o_c, n, first, chunk, D, BD, PLANES), PLANES
                )
            c0, c1, c2 = split(b_c.to(p_z.dtype.element_ty), PLANES)
            b_acc = dot_planes(c0, c1, c2, y0, y1, y2, b_acc, PLANES)
            b_sum = row_sums(b_c, c0, b_ones, b_sum, PLANES)

    b_zm = centred(p_zn, o_m, n, first, chunk, D, BD, PLANES).to(tl.float32)
    # Each pair counts twice, and the derivative of a square is another factor 2.
    scale = tl.load(p_grad + i_n * sg) * tl.load(p_coef + i_n) * 4.0
    b_total = tl.sum(b_sum, 1) / ONES
    b_dz = (b_zm * b_total[:, None] - b_acc) * scale
    if FP16:
        b_dz = b_dz * (1.0 / unit) * (1.0 / unit)
    o_k = chunk + tl.arange(0, BD)
    p_out = p_dz + (i_n * T + o_m)[:, None] * D + o_k[None, :]
    m_out = (o_m < T)[:, None] & (o_k < D)[None, :]
    tl.store(p_out, tl.where(m_m[:, None], b_dz, 0.0).to(p_dz.dtype.element_ty), mask=m_out)
