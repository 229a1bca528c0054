"""Every barrier, fence and poll of the CUDA kernels is needed: without any one of them, some order
of the threads changes the result, hangs or crashes.
"""

import ctypes
import os

import pytest
import torch

from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw.host import FiberBackend
from ops.soft_dtw.test_cuda_host import frames, run

pytestmark = pytest.mark.process

SEEDS = range(12)


def result(fibers, seed, resident=3):
    """Two pairs of four strips; 20 channels, so that a block also uses its second group of
    channels.
    """
    x, y = frames(2, 100, 20, seed=1, dtype=torch.float32), frames(2, 90, 20, seed=2)
    x[:, 40:60] = y[:, 45:65]  # blocks whose costs are formed by differences
    bias = frames(2, 90, seed=3, dtype=torch.float32)
    backend = FiberBackend(fibers, resident, seed)
    return run(backend, x, y.float(), SoftDTWOptions(0.5, None), bias=bias)


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def in_a_child(work):
    """Returns the result of ``work``, or None if its process crashes."""
    child = os.fork()
    if child == 0:
        os._exit(17 if work() else 18)
    _, status = os.waitpid(child, 0)
    return {17: True, 18: False}.get(os.waitstatus_to_exitcode(status))


def test_nothing_can_be_left_out(fibers):
    library = ctypes.CDLL(str(fibers))
    library.place_name.restype = ctypes.c_char_p
    library.leave_out(-1)
    want = result(fibers, 0)
    places = library.leave_out(-1)
    names = [library.place_name(place).decode() for place in range(places)]
    assert {name.split(":")[0] for name in names} == {
        "backward.cuh",
        "forward.cuh",
        "memory.cuh",
        "strips.cuh",
    }
    assert in_a_child(lambda: all(same(result(fibers, seed), want) for seed in SEEDS))

    def goes_unnoticed(place):
        library.leave_out(place)
        try:
            return all(same(result(fibers, seed), want) for seed in SEEDS)
        except RuntimeError:  # it would never end
            return False

    unnoticed = [
        name for place, name in enumerate(names) if in_a_child(lambda p=place: goes_unnoticed(p))
    ]
    assert not unnoticed, unnoticed
