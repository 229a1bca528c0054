"""Tile functions that the Triton kernels of several ops share.

Names in kernels begin with what they hold: ``p_`` a pointer, ``b_`` the values of a block (rows,
columns or a tile), ``o_`` offsets or frame numbers, ``m_`` a mask, ``i_`` which sequence, direction
or block a program works on. Names in capitals are constants that a kernel is compiled for.
"""

import os

import triton
import triton.language as tl

# The interpreter's tl.dot would multiply the raw bits of bf16 numbers.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def dot(b_x, b_y, b_acc, PREC: tl.constexpr):
    if INTERPRET:
        b_x = b_x.to(tl.float32)
        b_y = b_y.to(tl.float32)
    return tl.dot(b_x, b_y, b_acc, input_precision=PREC)


@triton.jit
def fma(b_x, b_y, b_z):
    """x y + z in fp32, rounded once. The interpreter's version rounds twice."""
    b_xyz = (b_x.to(tl.float64) * b_y + b_z).to(tl.float32) if INTERPRET else tl.fma(b_x, b_y, b_z)
    return b_xyz


@triton.jit
def over(number, p_x):
    """The number divided by the value at the pointer; unchanged if the pointer is None; NaN if that
    value is not positive and finite."""
    number = tl.cast(number, tl.float32)
    if p_x is not None:
        x = tl.load(p_x).to(tl.float32)
        number = number / tl.where((x > 0.0) & (x < float("inf")), x, float("nan"))
    return number


@triton.jit
def split(b_x):
    """fp32 as a sum of three bf16; the last two are 0 where the first is not finite."""
    b_h = b_x.to(tl.bfloat16)
    b_rest = b_x - b_h.to(tl.float32)
    b_rest = tl.where(tl.abs(b_h.to(tl.float32)) < float("inf"), b_rest, 0.0)
    b_m = b_rest.to(tl.bfloat16)
    return b_h, b_m, (b_rest - b_m.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def frames(p_z, o_t, m_t, k, D: tl.constexpr, BK: tl.constexpr):
    """Channels k to k + BK of the frames (rows of z) o_t, zero where masked."""
    o_k = k + tl.arange(0, BK)
    p_tile = p_z + o_t.to(tl.int64)[:, None] * D + o_k[None, :]  # [BT, BK]
    m_tile = m_t[:, None]
    if D % BK != 0:
        m_tile = m_tile & (o_k < D)[None, :]
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def is_last(p_ticket):
    """Whether every other program has already come here, so that all their results can be read.

    Only the last program continues, and adds in a fixed order: the result does not depend on
    which program that is. It leaves the ticket at 0 for the next launch.
    """
    tl.debug_barrier()  # all threads have stored their results before one of them counts
    last = tl.atomic_add(p_ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(p_ticket, 0)
    return last
