"""pytorch-softdtw-cuda's ``SoftDTW``: change one import, keep the training loop."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastseq.ops.common.dispatch import call_as
from fastseq.ops.common.validate import check_pair, check_positive
from fastseq.ops.soft_dtw import soft_dtw, soft_dtw_from_cost
from fastseq.ops.soft_dtw.costs import full_precision


class SoftDTW(torch.nn.Module):
    """Soft-DTW with the constructor and the call of pytorch-softdtw-cuda's module.

    Values equal those of that module; gradients equal those it would compute in exact arithmetic.
    Lengths over 1024 run on the GPU too, and second derivatives raise an error instead of coming
    out wrong.

    Args:
        use_cuda: accepted and ignored: the device of the tensors decides.
        gamma: smoothing, in the units of the cost.
        normalize: the value of (x, y) minus half the values of (x, x) and (y, y). Unlike in that
            module, the lengths of x and y may differ.
        bandwidth: only pairs with |i - j| <= bandwidth; None or 0: all pairs, as there. With
            N != M the B N M costs are stored.
        dist_func: function that returns costs (B, N, M) for x (B, N, D) and y (B, M, D). Default:
            squared Euclidean, which is never stored.
        backend: as in :func:`fastseq.soft_dtw`.

    Raises:
        ValueError: in the call, if bandwidth is smaller than the difference of the lengths, so
            that no path exists (that module then returns infinity).

    Example:
        >>> import torch
        >>> criterion = SoftDTW(use_cuda=False, gamma=0.1)
        >>> criterion(torch.randn(2, 10, 3), torch.randn(2, 12, 3)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        use_cuda: bool,
        gamma: float = 1.0,
        normalize: bool = False,
        bandwidth: float | None = None,
        dist_func: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        backend: str = "auto",
    ):
        super().__init__()
        self.use_cuda = use_cuda
        self.gamma = check_positive("SoftDTW", "gamma", gamma)
        self.normalize = normalize
        self.bandwidth = bandwidth
        self.dist_func = dist_func
        self.backend = backend

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        """(B,) values of X (B, N, D) and Y (B, M, D)."""
        value = self._value(X, Y)
        if not self.normalize:
            return value
        return value - (self._value(X, X) + self._value(Y, Y)) / 2

    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        check_pair("SoftDTW", "X", x, "Y", y)
        if x.dim() != 3:
            raise ValueError(
                f"SoftDTW: X and Y must have shape (B, N, D) and (B, M, D), got {tuple(x.shape)} "
                f"and {tuple(y.shape)}"
            )
        n, m = x.shape[1], y.shape[1]
        band = int(self.bandwidth) if self.bandwidth and self.bandwidth > 0 else None
        options = {"gamma": self.gamma, "bandwidth": band, "backend": self.backend}
        if band is not None and band < abs(n - m):
            raise ValueError(
                f"SoftDTW: no path fits into |i - j| <= {band} when X has {n} frames and Y {m}; "
                f"to fix: bandwidth of at least {abs(n - m)}, or fastseq.soft_dtw, whose band "
                "widens with the difference"
            )
        # fastseq's band is the same for n = m; otherwise it is wider on one side.
        narrow = band if n != m else None
        if self.dist_func is None and narrow is None:
            return call_as("SoftDTW", soft_dtw, x, y, **options)
        cost = (self.dist_func or _squared_distances)(x, y)
        if narrow is not None:
            gap = torch.arange(m, device=x.device) - torch.arange(n, device=x.device)[:, None]
            # A finite cost larger than any path's; half precision has no such number.
            cost = torch.where(gap.abs() <= narrow, full_precision(cost), 1e30 * self.gamma)
        return call_as("SoftDTW", soft_dtw_from_cost, cost, **options)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    x, y = full_precision(x), full_precision(y)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
