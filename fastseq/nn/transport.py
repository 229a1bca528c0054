"""Modules of the losses on entropic optimal transport."""

from torch import Tensor

from fastseq.nn.loss import Loss
from fastseq.ops.common.lengths import Lengths
from fastseq.ops.sinkhorn.op import sinkhorn_alignment
from fastseq.ops.sinkhorn.options import AlignmentOptions
from fastseq.ops.sinkhorn.vava import VAVAOptions, vava_loss


class SinkhornAlignment(Loss):
    """:func:`fastseq.sinkhorn_alignment` as a module; see there for the formula, shapes and
    defaults.

    Example:
        >>> import torch
        >>> from fastseq.nn import SinkhornAlignment
        >>> loss = SinkhornAlignment(prior_width=0.1, virtual_cost=0.5, reduction="mean")
        >>> x, y = torch.randn(4, 80, 128), torch.randn(4, 60, 128)
        >>> loss(x, y, lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    tensors = learned = ()

    def __init__(
        self,
        *,
        epsilon: float = 0.1,
        iterations: int = 20,
        cost: str = "sqeuclidean",
        prior_width: float | None = None,
        virtual_cost: float | None = None,
        reduction: str = "none",
        backend: str = "auto",
    ):
        super().__init__(
            AlignmentOptions.checked,
            backend,
            epsilon=epsilon,
            iterations=iterations,
            cost=cost,
            prior_width=prior_width,
            virtual_cost=virtual_cost,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        return sinkhorn_alignment(
            x,
            y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **self.options,
        )


class VAVALoss(Loss):
    """:func:`fastseq.vava_loss` as a module; see there for the formula, shapes and defaults.

    ``phi`` of the constructor is used in calls that pass none.

    Example:
        >>> import torch
        >>> from fastseq.nn import VAVALoss
        >>> from fastseq.ops.sinkhorn import vava_phi
        >>> loss = VAVALoss()
        >>> x, y = torch.randn(4, 80, 128), torch.randn(4, 60, 128)
        >>> loss(x, y, phi=vava_phi(step=10_000), lengths_x=[80, 60, 80, 7]).shape
        torch.Size([])
    """

    tensors = learned = ()

    def __init__(
        self,
        *,
        phi: float = 0.999,
        epsilon: float = 0.1,
        iterations: int = 21,
        structure: float = 1.0,
        prior_width: float = 2.0,
        virtual_cost: float = 0.5,
        virtual_distance: float = 5.0,
        window: float = 15.0,
        margin: float = 2.0,
        intra: float = 0.5,
        inter: float = 1e-4,
        temperature: float = 0.5,
        form: str = "paper",
        reduction: str = "mean",
        backend: str = "auto",
    ):
        super().__init__(
            VAVAOptions.checked,
            backend,
            phi=phi,
            epsilon=epsilon,
            iterations=iterations,
            structure=structure,
            prior_width=prior_width,
            virtual_cost=virtual_cost,
            virtual_distance=virtual_distance,
            window=window,
            margin=margin,
            intra=intra,
            inter=inter,
            temperature=temperature,
            form=form,
            reduction=reduction,
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        phi: float | None = None,
        lengths_x: Lengths = None,
        lengths_y: Lengths = None,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
    ) -> Tensor:
        options = dict(self.options) if phi is None else {**self.options, "phi": phi}
        return vava_loss(
            x,
            y,
            lengths_x=lengths_x,
            lengths_y=lengths_y,
            valid_x=valid_x,
            valid_y=valid_y,
            **options,
        )
