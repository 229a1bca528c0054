"""The Triton kernels of queue_nce; README.md in this folder derives the formulas.

The scan is split over the queue as well as over the queries; otherwise 32 queries would keep one
multiprocessor busy. Each part stores its maximum, its sum and its weighted sum of rows; the loss
kernel joins them, one query per program. No atomics: the same bits every time. All exponents and
logarithms are base 2.
"""

import triton
import triton.language as tl

from fastseq.ops.common.triton_tiles import frames, over
from fastseq.ops.queue_nce.triton_tiles import FP16_UNDO, absorb, split, widened

LN2 = tl.constexpr(0.6931471805599453)
NORM_EPS = tl.constexpr(1e-12)


@triton.jit
def vector(p_z, D: tl.constexpr, BD: tl.constexpr):
    """One embedding in fp32, zero beyond its channels."""
    o_d = tl.arange(0, BD)
    return tl.load(p_z + o_d, mask=o_d < D, other=0.0).to(tl.float32)


@triton.jit
def inverse_norm(b_sq, NORM: tl.constexpr):
    f = tl.full(b_sq.shape, 1.0, tl.float32)
    if NORM:
        # Comparisons, not a maximum: NaN stays.
        b_norm = tl.sqrt(b_sq)
        f = 1.0 / tl.where(b_norm < NORM_EPS, NORM_EPS, b_norm)
    return f


@triton.jit(do_not_specialize=["N", "K", "stored", "span", "fold"])
def queue_nce_scan_kernel(
    p_q,  # [N, D]
    p_c,  # [K, D], in its own dtype
    p_tau,  # temperature; None: scale includes it
    p_max,  # [N, stored]
    p_sum,  # [N, stored]
    p_acc,  # [N, stored, D]
    N,
    K,
    stored,  # sums of a query: one for each ``fold`` parts of the queue
    span,  # rows of a part
    fold,
    scale,  # log2(e) / temperature
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PLANES: tl.constexpr,
    PAIRS: tl.constexpr,  # whether fold is ever more than 1
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    CHUNKS: tl.constexpr = (D + BD - 1) // BD if KEEP else 1
    UNDO: tl.constexpr = FP16_UNDO if tl.float16 == p_q.dtype.element_ty else 1.0
    # Neighbouring programs share a part of the queue.
    blocks = tl.cdiv(N, BM)
    o_m = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    m_m = o_m < N
    i_s = tl.program_id(0) // blocks // CHUNKS
    chunk = tl.program_id(0) // blocks % CHUNKS * BD

    b_q = frames(p_q, o_m, m_m, 0, D, BK)  # [BM, BK]
    b_f = tl.zeros([BM], tl.float32) + over(scale, p_tau)
    if NORM:
        b_sq = tl.sum(b_q.to(tl.float32) * b_q.to(tl.float32), 1)
        for k in range(BK, D, BK):
            b_qk = frames(p_q, o_m, m_m, k, D, BK).to(tl.float32)
            b_sq += tl.sum(b_qk * b_qk, 1)
        b_f *= inverse_norm(b_sq, NORM)
    b_q, b_qm, b_ql = split(b_q, PLANES)

    if PAIRS:
        b_max = tl.full([BM], float("-inf"), tl.float32)
        b_sum = tl.zeros([BM], tl.float32)
        b_acc = tl.zeros([BM, BD], tl.float32)
        for i in range(i_s * fold, (i_s + 1) * fold):
            b_top, b_all, b_mix = scan_part(
                *(p_q, o_m, m_m, b_q, b_qm, b_ql, b_f, p_c, tl.cast(i, tl.int64), K, span, chunk),
                *(D, BM, BK, BN, BD, PLANES, KEEP),
            )
            b_max, b_w, b_v = joined(b_max, b_top)
            b_sum = tl.fma(b_sum, b_w, b_all * b_v)
            if KEEP:
                b_acc = tl.fma(b_acc, widened(b_w, b_acc), b_mix * b_v[:, None])
    else:
        b_max, b_sum, b_acc = scan_part(
            *(p_q, o_m, m_m, b_q, b_qm, b_ql, b_f, p_c, i_s.to(tl.int64), K, span, chunk),
            *(D, BM, BK, BN, BD, PLANES, KEEP),
        )

    o_part = o_m.to(tl.int64) * stored + i_s
    if chunk == 0:
        tl.store(p_max + o_part, b_max, mask=m_m)
        tl.store(p_sum + o_part, b_sum * UNDO, mask=m_m)
    if KEEP:
        o_d = chunk + tl.arange(0, BD)
        p_out = p_acc + o_part[:, None] * D + o_d[None, :]
        tl.store(p_out, b_acc * UNDO, mask=m_m[:, None] & (o_d < D)[None, :])


@triton.jit
def scan_part(
    p_q,
    o_m,
    m_m,
    b_q,
    b_qm,
    b_ql,
    b_f,
    p_c,
    i,
    K,
    span,
    chunk,
    D: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PLANES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Maximum, sum and weighted sum of the queue's part i."""
    first = i * span
    count = tl.minimum(span, K - first).to(tl.int32)
    p_c += first * D
    whole = count // BN * BN
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, BD], tl.float32)
    # Recomputing the loop's constants is cheaper than keeping them: addresses and descriptors of
    # shared memory alone would exceed a thread's registers.
    for j in tl.range(0, whole, BN, disable_licm=True):
        b_max, b_sum, b_acc = absorb(
            *(p_q, o_m, m_m, b_q, b_qm, b_ql, b_f, p_c, j, count, chunk),
            *(b_max, b_sum, b_acc, D, BK, BN, BD, PLANES, KEEP, False),
        )
    for j in tl.range(tl.maximum(whole, 0), count, BN, num_stages=1, disable_licm=True):
        b_max, b_sum, b_acc = absorb(
            *(p_q, o_m, m_m, b_q, b_qm, b_ql, b_f, p_c, j, count, chunk),
            *(b_max, b_sum, b_acc, D, BK, BN, BD, PLANES, KEEP, True),
        )
    return b_max, b_sum, b_acc


@triton.jit
def joined(b_max1, b_max2):
    """The maximum of two parts, and the factors for their sums."""
    b_max = tl.maximum(b_max1, b_max2)
    b_top = tl.where(b_max == float("-inf"), 0.0, b_max)  # both are empty
    return b_max, tl.exp2(b_max1 - b_top), tl.exp2(b_max2 - b_top)


@triton.jit(do_not_specialize=["P", "stored"])
def queue_nce_loss_kernel(
    p_q,
    p_pos,  # [N, P, D]
    p_tau,
    p_max,
    p_sum,
    p_acc,
    p_loss,  # [N, P]
    p_lack,  # [N, P]: 1 - the probability of the positive
    p_mean,  # [N, D]
    P,
    stored,
    scale,
    D: tl.constexpr,
    BS: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    FOLDED: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    # A query has one program for its losses, and one for each BC channels of its mean.
    PROGRAMS: tl.constexpr = (D + BC - 1) // BC + 1 if KEEP else 1
    i_n = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    i_c = tl.program_id(0) % PROGRAMS
    o_s = tl.arange(0, BS)
    m_s = o_s < stored
    p_max += i_n * stored
    p_sum += i_n * stored
    if FOLDED:
        b_max = tl.load(p_max + o_s, mask=m_s, other=float("-inf"))
        b_sum = tl.load(p_sum + o_s, mask=m_s, other=0.0)
    else:
        # In pairs, as the scan does when there are enough queries.
        o_s *= 2
        m_s = o_s < stored
        m_t = o_s + 1 < stored
        b_max1 = tl.load(p_max + o_s, mask=m_s, other=float("-inf"))
        b_max2 = tl.load(p_max + o_s + 1, mask=m_t, other=float("-inf"))
        b_max, b_w1, b_w2 = joined(b_max1, b_max2)
        b_sum1 = tl.load(p_sum + o_s, mask=m_s, other=0.0)
        b_sum2 = tl.load(p_sum + o_s + 1, mask=m_t, other=0.0)
        b_sum = tl.fma(b_sum1, b_w1, b_sum2 * b_w2)
    top = tl.max(b_max, 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # an empty queue
    b_w = tl.exp2(b_max - top)
    total = tl.sum(b_w * b_sum, 0)

    if i_c == PROGRAMS - 1:
        lse = top + tl.log2(total)
        o_d = tl.arange(0, BD)
        b_q = tl.load(p_q + i_n * D + o_d, mask=o_d < D, other=0.0).to(tl.float32)
        b_q *= inverse_norm(tl.sum(b_q * b_q, 0), NORM) * over(scale, p_tau)
        for p in range(0, P, BP):
            o_p = p + tl.arange(0, BP)
            m_p = o_p < P
            b_v = frames(p_pos + i_n * P * D, o_p, m_p, 0, D, BD).to(tl.float32)
            b_gap = lse - tl.sum(b_q[None, :] * b_v, 1) * inverse_norm(tl.sum(b_v * b_v, 1), NORM)
            # log(1 + e), computed so that the digits of a small e are kept.
            b_e = tl.exp2(-tl.abs(b_gap))
            b_d = (1.0 + b_e) - 1.0
            b_log = tl.log(1.0 + b_e) * (b_e / tl.where(b_d == 0.0, 1.0, b_d))
            b_log = tl.where(b_d == 0.0, b_e, b_log)
            b_loss = tl.where(b_gap < 0.0, 0.0, b_gap * LN2) + b_log
            tl.store(p_loss + i_n * P + o_p, b_loss, mask=m_p)
            tl.store(p_lack + i_n * P + o_p, 1.0 / (1.0 + tl.exp2(-b_gap)), mask=m_p)
    elif KEEP:
        share = tl.where(total == 0.0, 0.0, 1.0 / total)
        o_k = i_c * BC + tl.arange(0, BC)
        p_part = p_acc + (i_n * stored + o_s)[:, None] * D + o_k[None, :]  # [BS, BC]
        m_k = (o_k < D)[None, :]
        b_part = tl.load(p_part, mask=m_s[:, None] & m_k, other=0.0)
        if not FOLDED:
            b_more = tl.load(p_part + D, mask=m_t[:, None] & m_k, other=0.0)
            b_part = tl.fma(b_part, widened(b_w1, b_part), b_more * b_w2[:, None])
        b_mean = tl.sum(b_part * b_w[:, None], 0) * share
        tl.store(p_mean + i_n * D + o_k, b_mean, mask=o_k < D)


@triton.jit(do_not_specialize=["P", "sgn", "sgp"])
def queue_nce_grad_kernel(
    p_q,
    p_pos,
    p_tau,
    p_lack,
    p_mean,  # or None: neither p_dq nor p_dtau is needed
    p_grad,  # gradient of the losses [N, P], with strides sgn and sgp
    p_dq,  # [N, D] or None
    p_dpos,  # [N, P, D] or None
    p_dtau,  # [N], each query's part of the temperature's gradient, or None
    P,
    sgn,
    sgp,
    rate,  # 1 / temperature
    D: tl.constexpr,
    BD: tl.constexpr,
    NORM: tl.constexpr,
):
    rate = over(rate, p_tau)
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_u = vector(p_q + i_n * D, D, BD)
    sq_q = tl.sum(b_u * b_u, 0)
    f_q = inverse_norm(sq_q, NORM)
    b_u *= f_q
    b_pull = tl.zeros([BD], tl.float32)
    total = 0.0
    for p in range(0, P):
        i_p = i_n * P + p
        w = tl.load(p_grad + i_n * sgn + p * sgp) * tl.load(p_lack + i_p) * rate
        b_v = vector(p_pos + i_p * D, D, BD)
        sq = tl.sum(b_v * b_v, 0)
        f = inverse_norm(sq, NORM)
        b_v *= f
        total += w
        b_pull += w * b_v
        if p_dpos is not None:
            b_d = through_norm(-w * b_u, b_v, sq, f, NORM)
            tl.store(p_dpos + i_p * D + o_d, b_d.to(p_dpos.dtype.element_ty), mask=m_d)
    if p_mean is not None:
        b_d = total * vector(p_mean + i_n * D, D, BD) - b_pull
    if p_dtau is not None:
        # The temperature t divides the query: its gradient follows from that of u = q / t.
        tl.store(p_dtau + i_n, -rate * tl.sum(b_d * b_u, 0))
    if p_dq is not None:
        b_d = through_norm(b_d, b_u, sq_q, f_q, NORM)
        tl.store(p_dq + i_n * D + o_d, b_d.to(p_dq.dtype.element_ty), mask=m_d)


@triton.jit
def through_norm(b_d, b_unit, sq, f, NORM: tl.constexpr):
    """The gradient of a vector before its division by its norm; ``f`` is the inverse norm."""
    if NORM:
        # A clamped norm is a constant.
        along = tl.where(tl.sqrt(sq) < NORM_EPS, 0.0, tl.sum(b_d * b_unit, 0))
        b_d = (b_d - along * b_unit) * f
    return b_d
