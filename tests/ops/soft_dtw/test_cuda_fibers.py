"""The CUDA kernels of Soft-DTW themselves, with their warps, barriers and flags, on the CPU: each
thread is a fiber, in orders drawn from seeds. This does not detect missing fences.
"""

import pytest
import torch

from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw.host import FiberBackend
from ops.soft_dtw.test_cuda_host import frames, relative, run, truth

pytestmark = pytest.mark.process

F32, F64 = torch.float32, torch.float64


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("bandwidth", [None, 0, 31, 33])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (33, 64), (64, 33), (100, 130)])
def test_against_the_definition(fibers, shape, bandwidth):
    n, m = shape
    x, y = frames(2, n, 35, seed=n), frames(2, m, 35, seed=m + 1)
    opts, grad = SoftDTWOptions(0.7, bandwidth), torch.tensor([-2.0, 0.5])
    got = run(FiberBackend(fibers), x, y, opts, grad=grad)
    for a, b in zip(got, truth(x, y, opts, grad=grad), strict=True):
        assert relative(a, b) <= 1e-11


@pytest.mark.parametrize("given", ["embeddings", "cost"])
@pytest.mark.parametrize("bandwidth", [None, 20])
def test_any_order_gives_the_same_bits(fibers, bandwidth, given):
    """The result is the same for any order of threads, any number of thread blocks at a time and
    any mode. Padding is NaN and has no effect; its gradients are 0.
    """
    lengths_x, lengths_y = torch.tensor([100, 0, 33, 64, -1]), torch.tensor([70, 5, 64, 200, 3])
    n, m = 100, 70
    end_x, end_y = lengths_x.clamp(0, n), lengths_y.clamp(0, m)
    real_x, real_y = (torch.arange(t) < e[:, None] for t, e in ((n, end_x), (m, end_y)))
    if given == "embeddings":
        clean = frames(5, n, 130, seed=1, dtype=F32), frames(5, m, 130, seed=2, dtype=F32)
        real = real_x[..., None], real_y[..., None]
    else:
        clean = (frames(5, n, m, seed=1, dtype=F32).abs(), None)
        real = (real_x[:, :, None] & real_y[:, None], None)
    nan = [z if z is None else z.where(r, torch.nan) for z, r in zip(clean, real, strict=True)]
    opts = SoftDTWOptions(0.3, bandwidth)
    bias = nan_bias = None
    if given == "embeddings":
        bias = frames(5, m, seed=3, dtype=F32)
        nan_bias, real = bias.where(real_y, torch.nan), (*real, real_y)

    def result(*schedule):
        backend = FiberBackend(fibers, *schedule)
        return run(backend, *nan, opts, lengths_x, lengths_y, bias=nan_bias)

    first = result(4, 0)
    for a, b in zip(first, truth(*clean, opts, end_x, end_y, bias=bias), strict=True):
        assert relative(a, b) <= 3e-6
    for grad, r in zip(first[1:], real, strict=False):
        assert not grad[~r.expand_as(grad)].any()
    assert all(same(result(*how), first) for how in ((1, 1), (3, 2), (100, 3), (2, 4, True)))
    if given == "embeddings":
        x, y = (z[2:3, :e].contiguous() for z, e in zip(clean, (33, 64), strict=True))
        got = run(FiberBackend(fibers), x, y, opts, bias=bias[2:3, :64].contiguous())
        parts = first[0][2], first[1][2, :33], first[2][2, :64], first[3][2, :64]
        assert same((t[0] for t in got), parts)


@pytest.mark.parametrize(
    "need", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_only_what_is_asked_for(fibers, need):
    x, y = frames(1, 70, 5, seed=1), frames(1, 40, 5, seed=2)
    args = x, y, None, frames(1, 40, seed=3), *[None] * 4
    opts, backend = SoftDTWOptions(0.5, None), FiberBackend(fibers)
    _, *saved = backend.forward(*args, opts, needs=[True] * 4)
    one, wanted = torch.ones(1, dtype=F64), (*need[:2], False, need[2])
    both = backend.backward(one, *args, *saved, opts=opts)
    got = backend.backward(one, *args, *saved, opts=opts, needs=wanted)
    for grad, want, asked in zip(got, both, wanted, strict=True):
        assert torch.equal(grad, want) if asked else grad is None


def test_forward_alone(fibers):
    x, y = frames(2, 70, 5, seed=1), frames(2, 40, 5, seed=2)
    opts, backend = SoftDTWOptions(0.5, None), FiberBackend(fibers)
    value, *saved = backend.forward(x, y, *[None] * 6, opts, needs=[False] * 4)
    assert saved == []
    assert torch.equal(value, backend.forward(x, y, *[None] * 6, opts, needs=[True] * 4)[0])
