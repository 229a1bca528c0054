"""What the modules share: how they keep their options."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastseq.ops.common.validate import check_scalar


class Loss(nn.Module):
    """Checks the options of a loss when it is made, and shows them in its representation.

    Those in ``tensors`` may be 0-dim tensors: an ``nn.Parameter`` becomes one of the module,
    another tensor a buffer.
    """

    tensors: tuple[str, ...] = ()

    def __init__(self, check: Callable[..., object], backend: str, **options: Any) -> None:
        super().__init__()
        given = {k: options.pop(k) for k in self.tensors if isinstance(options[k], Tensor)}
        check(type(self).__name__, **options, **dict.fromkeys(given, 1.0))
        for name, value in given.items():
            check_scalar(type(self).__name__, name, value, value.device)
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)
        self.registered, self.constants = tuple(given), options | {"backend": backend}

    @property
    def options(self) -> dict[str, Any]:
        # The module may have moved its parameters and buffers, or got others.
        return self.constants | {name: getattr(self, name) for name in self.registered}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.constants.items())
