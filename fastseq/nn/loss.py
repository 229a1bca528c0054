"""The base class of the modules: how they store their options."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fastseq.ops.common.validate import check_scalar


class Loss(nn.Module):
    """Checks the options of a loss in the constructor, and shows them in its representation.

    Options in ``tensors`` may be 0-dim tensors, which become buffers; those in ``learned`` may be
    an ``nn.Parameter``, which becomes a parameter of the module.
    """

    tensors: tuple[str, ...] = ("temperature",)
    learned: tuple[str, ...] = ("temperature",)

    def __init__(self, check: Callable[..., object], backend: str, **options: Any) -> None:
        super().__init__()
        given = {k: options.pop(k) for k in self.tensors if isinstance(options.get(k), Tensor)}
        op = type(self).__name__
        check(op, **options, **dict.fromkeys(given, 1.0))
        for name, value in given.items():
            check_scalar(op, name, value, value.device)
            if isinstance(value, nn.Parameter) and name in self.learned:
                self.register_parameter(name, value)
            elif not value.requires_grad:
                self.register_buffer(name, value)
            elif name in self.learned:
                raise ValueError(
                    f"{op}: {name} requires a gradient and is not an nn.Parameter, so no optimizer "
                    f"would find it in the module; to fix: {name}=nn.Parameter({name}.detach()), "
                    f"or call the function with it instead of the module"
                )
            else:
                raise ValueError(
                    f"{op}: {name} requires a gradient, which is not computed; to fix: "
                    f"{name}.detach()"
                )
        self.registered, self.constants = tuple(given), options | {"backend": backend}

    @property
    def options(self) -> Mapping[str, Any]:
        # Read anew: the module may have moved or replaced its parameters and buffers.
        return MappingProxyType(
            self.constants | {name: getattr(self, name) for name in self.registered}
        )

    def extra_repr(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.constants.items()]
        for name in self.registered:
            kind = "parameter" if name in self._parameters else "buffer"
            shown.append(f"{name}=({kind})")
        return ", ".join(shown)
