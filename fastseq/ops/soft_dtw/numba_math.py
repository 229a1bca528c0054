"""Building blocks of the numba backend's kernels: 2^x and log2 that vectorise (numba has no vector
library), the weights of one cell, and how threads wait for each other.

numba's cache checks the file of a compiled function alone: after an edit here, in numba_wave.py
or in numba_costs.py, touch numba_kernels.py.
"""

import math
import sys

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

# Fused multiply-add, but no reordering: results are repeatable. Division without a check for 0.
OPTIONS = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
kernel = numba.njit(**OPTIONS)

_ONE, _HALF = np.float32(1), np.float32(0.5)
_UNDERFLOW = np.float32(-125)
# Chebyshev fits: 2^f on [-1/2, 1/2], error 2e-9; log2(1 + z) / z on [-1/4, 1/2], error 7e-9.
_E1, _E2, _E3 = np.float32(6.93147207e-01), np.float32(2.40226512e-01), np.float32(5.55032721e-02)
_E4, _E5, _E6 = np.float32(9.61802560e-03), np.float32(1.34004322e-03), np.float32(1.54697320e-04)
_L0, _L1, _L2 = np.float32(1.44269503), np.float32(-0.721347535), np.float32(0.480900769)
_L3, _L4, _L5 = np.float32(-0.360675106), np.float32(0.288384543), np.float32(-0.240141685)
_L6, _L7, _L8 = np.float32(0.20908246), np.float32(-0.190318899), np.float32(0.150851797)
_L9 = np.float32(-0.0645084384)


@intrinsic
def _float_of_bits(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def load_acquire(typingctx, array, index):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_element(context, builder, signature, args), "acquire", 8)

    return types.int64(array, index), codegen


@intrinsic
def store_release(typingctx, array, index, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _element(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(array, index, types.int64), codegen


@intrinsic
def take_number(typingctx, counter):
    """0, 1, 2, ...: the next number of an int64 counter that threads share."""

    def codegen(context, builder, signature, args):
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


def _element(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def exp2(x):
    raise NotImplementedError


@overload(exp2)
def _exp2(x):
    """2^x for x <= 0."""
    if x == types.float64:
        return lambda x: np.exp2(x)

    def fp32(x):
        n = np.floor(x + _HALF)
        f = x - n
        p = _E6
        p = p * f + _E5
        p = p * f + _E4
        p = p * f + _E3
        p = p * f + _E2
        p = p * f + _E1
        p = p * f + _ONE
        n = n if n > _UNDERFLOW else _UNDERFLOW
        scale = _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
        return p * scale if x > _UNDERFLOW else (x - x)  # 0, or NaN for NaN

    return fp32


def log2_1p(t):
    raise NotImplementedError


@overload(log2_1p)
def _log2_1p(t):
    """log2(1 + t) for t from 0 to 2, accurate to the result's rounding also where t is small."""
    if t == types.float64:
        return lambda t: math.log1p(t) / math.log(2)

    def fp32(t):
        high = t > _HALF
        z = (t - _ONE) * _HALF if high else t
        p = _L9
        p = p * z + _L8
        p = p * z + _L7
        p = p * z + _L6
        p = p * z + _L5
        p = p * z + _L4
        p = p * z + _L3
        p = p * z + _L2
        p = p * z + _L1
        p = p * z + _L0
        return p * z + (_ONE if high else _ONE - _ONE)

    return fp32


def warped(score, penalty):
    raise NotImplementedError


@overload(warped)
def _warped(score, penalty):
    """The score of a step that is not diagonal; None: no penalty, and no code for one either."""
    if penalty == types.none:
        return lambda score, penalty: score
    return lambda score, penalty: score + penalty


def of_pair(values, b):
    raise NotImplementedError


@overload(of_pair)
def _of_pair(values, b):
    if values == types.none:
        return lambda values, b: None
    return lambda values, b: values[b]


if sys.platform == "win32":

    @numba.njit
    def _sched_yield():
        return 0

else:
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())


@numba.njit(nogil=True)
def wait_for(progress, strip, wanted):
    """Wait until the thread of a strip has finished ``wanted`` of its blocks."""
    looks = 0
    while load_acquire(progress, strip) < wanted:
        looks += 1
        if looks > 500:
            _sched_yield()


# A type for each soft minimum, on which the kernels are compiled: no code for the others.
KINDS = {"logsumexp": None, "prob": True, "sparse": 0}


def soften(kind, x, y, one):
    raise NotImplementedError


# Inlined, whatever its size: a loop around a call would not be vectorised.
@overload(soften, jit_options={"forceinline": True})
def _soften(kind, x, y, one):
    """The soft minimum of the scores 0 (diagonal), x (up) and y (left) of a cell: (least score,
    middle score, how far the soft minimum lies below the least, and its derivatives with respect
    to the least, the middle and the greatest score). The derivatives sum to 1 up to rounding.

    Scores are in units of gamma / log2(e); of gamma if the kind is sparse.
    """
    if kind == types.none:
        return _soften_logsumexp
    return _soften_prob if kind == types.boolean else _soften_sparse


def _soften_logsumexp(kind, x, y, one):
    zero = one - one
    least, middle, most = _ordered(x, y, zero)
    # 2^(least - score): the third is exactly 1, so two exps are enough.
    a, b = exp2(least - middle), exp2(least - most)
    share = one / (one + (a + b))
    return least, middle, log2_1p(a + b), share, share * a, share * b


def _soften_prob(kind, x, y, one):
    zero, ln2 = one - one, _ln2(one)
    least, middle, most = _ordered(x, y, zero)
    to_middle, to_most = middle - least, most - least
    a, b = exp2(-to_middle), exp2(-to_most)
    share = one / (one + (a + b))
    a, b = share * a, share * b
    mean = a * to_middle + b * to_most
    return (
        least,
        middle,
        -mean,
        share * (one + ln2 * mean),
        a * (one + ln2 * (mean - to_middle)),
        b * (one + ln2 * (mean - to_most)),
    )


def _soften_sparse(kind, x, y, one):
    zero, two = one - one, one + one
    least, middle, most = _ordered(x, y, zero)
    to_middle, to_most = middle - least, most - least
    # Of the least score, if only it has a share, if two have one, if all have: the smallest is it.
    share, pair, triple = one, (one + to_middle) / two, (one + to_middle + to_most) / (two + one)
    share = pair if pair < share else share
    share = triple if triple < share else share
    a, b = share - to_middle, share - to_most
    a, b = a if a > zero else zero, b if b > zero else zero
    # <q, r> - sum q (1 - q) / 2 without the cancellation, as q sums to 1.
    return least, middle, a * a + b * b + a * b, share, a, b


def _ln2(one):
    raise NotImplementedError


@overload(_ln2)
def _ln2_of(one):
    ln2 = math.log(2) if one == types.float64 else np.float32(math.log(2))
    return lambda one: ln2


@kernel
def _ordered(x, y, zero):
    """Least, middle and greatest of the scores 0, x and y."""
    small, large = (x, y) if x < y else (y, x)
    inner = small if small > zero else zero
    return (
        small if small < zero else zero,
        inner if inner < large else large,
        large if large > zero else zero,
    )
