"""soft_dtw as one would compute it without fastseq. All take x, y (N, T, D), give the sum."""

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


def wavefront(x: Tensor, y: Tensor) -> Tensor:
    """Plain PyTorch and autograd: the costs by one product, R by anti-diagonals."""
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    cost = (squares - 2 * x @ y.mT).clamp(min=0)
    num, n, m = cost.shape
    # Row i moved i places to the right, so that column k is the anti-diagonal i + j = k. Taken
    # apart at once: a slice of its own each would have a gradient of the whole matrix each.
    skewed = F.pad(cost, (0, n)).flatten(1)[:, :-n].view(num, n, n + m - 1)
    diagonals = skewed.movedim(2, 0).contiguous().unbind()
    # R of a diagonal, at place i + 1; infinite where there is no cell.
    nothing = cost.new_full((num, n + 1), torch.inf)
    before, last = nothing, torch.cat([nothing[:, :1], cost[:, 0, :1], nothing[:, 2:]], 1)
    for k in range(1, n + m - 1):
        first, stop = max(0, k - m + 1), min(n, k + 1)
        steps = [before[:, first:stop], last[:, first:stop], last[:, first + 1 : stop + 1]]
        softmin = -GAMMA * torch.logsumexp(torch.stack(steps) / -GAMMA, 0)
        here = diagonals[k][:, first:stop] + softmin
        before, last = last, F.pad(here, (first + 1, n - stop), value=torch.inf)
    return last[:, -1].sum()


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
