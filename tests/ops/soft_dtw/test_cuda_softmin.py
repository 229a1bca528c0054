"""The CUDA kernels' soft minima "prob" and "sparse", on the CPU: the arithmetic on the host, and the
kernels as fibers.
"""

import shutil

import pytest
import torch

from fastseq.ops.soft_dtw.options import SoftDTWOptions
from ops.soft_dtw.host import FiberBackend, HostBackend, compile_library
from ops.soft_dtw.test_cuda_host import F32, F64, frames, relative, run, truth

pytestmark = pytest.mark.process
SOFTMINS = "prob", "sparse"


@pytest.fixture(scope="module", params=SOFTMINS)
def softmin(request):
    return request.param


@pytest.fixture(scope="module")
def host(softmin, tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("soft_dtw")
    return HostBackend(compile_library(compiler, folder, "host", softmin))


@pytest.mark.parametrize("bandwidth", [None, 0, 7, 33])
def test_against_the_definition(host, softmin, bandwidth):
    shapes = (1, 1), (1, 40), (40, 1), (31, 32), (33, 64), (97, 65)
    for n, m in shapes:
        x, y = frames(2, n, 5, seed=n), frames(2, m, 5, seed=m + 1)
        opts = SoftDTWOptions(0.7, bandwidth, warp_penalty=0.3, softmin=softmin)
        call = {"grad": torch.tensor([-2.0, 0.5]), "bias": frames(2, m, seed=7)}
        want = truth(x, y, opts, **call)
        for a, b in zip(run(host, x, y, opts, **call), want, strict=True):
            assert relative(a, b) <= 1e-11, (n, m)
        single = {k: v.float() for k, v in call.items()}
        for a, b in zip(run(host, x.float(), y.float(), opts, **single), want, strict=True):
            print(n,m,relative(a,b))
