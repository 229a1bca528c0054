"""soft_dtw computed without fastseq. All functions take x, y (N, T, D) and return the sum."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Unavailable

GAMMA = 0.1
LONGEST_WAVEFRONT = 4096
MISSING = '{} is not installed: pip install "fastseq[bench]"'


def build_wavefront(case: Case):
    if case.t > LONGEST_WAVEFRONT:
        raise Unavailable(
            f"float32 leaves its gradient 18 % off at T = {LONGEST_WAVEFRONT}; not tried beyond"
        )
    return wavefront


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    return (squares - 2 * x @ y.mT).clamp(min=0)


def wavefront(x: Tensor, y: Tensor, costs: Callable = squared_distances) -> Tensor:
    """Plain PyTorch and autograd: costs by one product, R by anti-diagonals."""
    cost = costs(x, y)
    num, n, m = cost.shape
    # Row i is shifted i places to the right, so that column k is the anti-diagonal i + j = k. All
    # columns are separated in one call: with a slice for each, every slice would have a gradient of
    # the size of the whole matrix.
    skewed = F.pad(cost, (0, n)).flatten(1)[:, :-n].view(num, n, n + m - 1)
    diagonals = skewed.movedim(2, 0).contiguous().unbind()
    # R of one diagonal, at index i + 1; infinite where there is no cell.
    nothing = cost.new_full((num, n + 1), torch.inf)
    before, last = nothing, torch.cat([nothing[:, :1], cost[:, 0, :1], nothing[:, 2:]], 1)
    for k in range(1, n + m - 1):
        first, stop = max(0, k - m + 1), min(n, k + 1)
        steps = [before[:, first:stop], last[:, first:stop], last[:, first + 1 : stop + 1]]
        softmin = -GAMMA * torch.logsumexp(torch.stack(steps) / -GAMMA, 0)
        here = diagonals[k][:, first:stop] + softmin
        before, last = last, F.pad(here, (first + 1, n - stop), value=torch.inf)
    return last[:, -1].sum()


def softmax_costs(x: Tensor, y: Tensor) -> Tensor:
    """-log softmax_i(cos(x_i, y_j) / GAMMA), as in GTA and AE2."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return -torch.log_softmax(x @ y.mT / GAMMA, 1)


def cell_by_cell(x: Tensor, y: Tensor) -> Tensor:
    """The form of AE2's released code: dense softmax costs, two Python loops over the cells of each
    pair, and a new copy of the table at each cell, since autograd keeps the old one.
    """
    total = x.new_zeros(())
    for cost in softmax_costs(x, y):
        n, m = cost.shape
        table = cost.new_full((n + 1, m + 1), torch.inf)
        table[0, 0] = 0
        for i in range(n):
            for j in range(m):
                steps = torch.stack([table[i, j], table[i, j + 1], table[i + 1, j]])
                softmin = -GAMMA * torch.logsumexp(steps / -GAMMA, 0)
                table = table.clone()
                table[i + 1, j + 1] = cost[i, j] + softmin
        total = total + table[n, m]
    return total


def build_pysdtw(case: Case, **options):
    try:
        import pysdtw
    except ImportError:
        raise Unavailable(MISSING.format("pysdtw")) from None
    options = {"gamma": GAMMA, "use_cuda": case.device == "cuda"} | options
    criterion = pysdtw.SoftDTW(**options)
    return lambda x, y: criterion(x, y).sum()


def build_tslearn(case: Case, **options):
    try:
        from tslearn.metrics import SoftDTWLossPyTorch
    except ImportError:
        raise Unavailable(MISSING.format("tslearn")) from None
    criterion = SoftDTWLossPyTorch(**{"gamma": GAMMA} | options)
    return lambda x, y: criterion(x, y).sum()


def build_ddtw(case: Case, *, costs: bool = False):
    """With ``costs``, the costs come from one product, as in pysdtw, instead of its T x S x D
    differences.
    """
    try:
        from ddtw import SDTW
    except ImportError:
        raise Unavailable(MISSING.format("ddtw")) from None
    backend = "cuda_cpp" if case.device == "cuda" else "cpu_numba"
    criterion = SDTW(gamma=GAMMA, normalization="none", backend=backend)
    # It returns only the mean over the batch.
    if costs:
        return lambda x, y: case.n * criterion(C=squared_distances(x, y))
    return lambda x, y: case.n * criterion(x, y)


def build_dtw_loss_functions(case: Case, *, implementation: str):
    """The package contains pytorch-softdtw-cuda ("mag") and sdtw-cuda-torch ("ron"), neither of
    them on PyPI. Its third implementation, pysdtw, is the package of that name.
    """
    try:
        from dtw_loss_functions.soft_dtw import soft_dtw
    except ImportError:
        raise Unavailable(MISSING.format("dtw-loss-functions")) from None
    config = {"gamma": GAMMA} | (
        {"use_cuda": case.device == "cuda"} if implementation == "mag" else {}
    )
    criterion = soft_dtw(implementation, config)
    return lambda x, y: criterion(x, y).sum()


def build_flash_softdtw(case: Case):
    if case.device == "cpu":
        raise Unavailable("has only a CUDA backend")
    raise Unavailable(
        "supports only signals of one channel and their distance |x - y|: another function"
    )
