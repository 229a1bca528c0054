"""The moving average of a model's weights during training (``optim.ema``)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of the trained parameters: a <- d a + (1 - d) w after each step.

    The average starts at the weights of the model at construction, whose share after n steps is
    d^n. Only trained parameters are averaged, by torch's function, because torch's `AveragedModel`
    would copy the frozen ones too. Buffers, such as the statistics of batch norms, are the model's:
    that is torch's ``use_buffers=False``.

    Args:
        model: the model on its device; parameters that need no gradient are frozen.
        decay: d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.averages = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        self._average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Add the model's current weights to the average."""
        self._average(list(self.averages.values()), list(self.averages), 1)

    def state_dict(self) -> dict[str, Tensor]:
        """A state dict of the model: averaged parameters, the model's own frozen ones and buffers.

        All but the averaged parameters share their memory with the model.
        """
        return self.model.state_dict() | {name: self.averages[p] for name, p in self._averaged()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average from `state_dict`; the model does not change."""
        for name, p in self._averaged():
            self.averages[p].copy_(state[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Context in which the model has the averaged weights.

        The weights are exchanged in place, one tensor at a time, and restored exactly.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _averaged(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The averaged parameters by name; a parameter that two layers share has two names."""
        for name, p in self.model.named_parameters(remove_duplicate=False):
            if p in self.averages:
                yield name, p

    @torch.no_grad()
    def _exchange(self) -> None:
        for p, average in self.averages.items():
            own = p.clone()
            p.copy_(average)
            average.copy_(own)
