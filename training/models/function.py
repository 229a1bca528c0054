"""A backbone from the user's code: ``model.backbone=package.module:function``."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.models.adopted import AdoptedBackbone
from training.models.backbone import Stages
from training.support.command import UserError

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_function(name: str) -> bool:
    """Whether ``model.backbone`` names a function."""
    return _FORM.fullmatch(name) is not None


class FunctionBackbone(AdoptedBackbone):
    """The module that a user's function returns when it is called without arguments.

    The module maps normalised images (n, 3, H, W) to maps (n, C, h, w). Its optional attributes:

    - ``pixel_mean``, ``pixel_std``: three numbers each, for RGB in 0 to 1 (default: ImageNet's).
    - ``stages``: a dictionary (or ModuleDict) name -> module, in order. These modules then run one
      after the other instead of the module itself, and ``model.train_from`` and
      ``model.backbone_to`` may name them. Without this attribute there is one stage.
    - ``strides``: a dictionary name -> stride, for ``model.backbone_to=stride8`` and ``stride16``.

    Weights files use the module's parameter names. Weights that the function itself loads are kept,
    but the project cannot know about them: a frozen part then needs ``model.random_frozen=true``.

    Loading a recipe or a run's configuration that names a function runs the code of that module:
    check the ones that you get from others. Modules are found as by ``python -m``, also in the
    current folder.

    Args:
        name: "package.module:function".
        image_size: height and width of the images in pixels.
        train_from, backbone_to, pool: see `Backbone`.

    Raises:
        UserError: there is no such function, it fails, or it does not return a module.
    """

    def __init__(
        self, name: str, image_size: int, train_from: str, backbone_to: str, pool: str
    ) -> None:
        made_by, network = _call(name)
        self.__dict__["makers"] = (made_by,)
        parts = _stages(network)
        strides = getattr(network, "strides", {})
        strides = strides if parts and isinstance(strides, Mapping) else {}
        for stage, part in parts.items():
            if not isinstance(part, nn.Module):
                raise UserError(
                    f"model.backbone={name}: stages[{stage!r}] is a {type(part).__name__}, "
                    "expected a torch.nn.Module"
                )
            if part not in set(network.modules()):
                raise UserError(
                    f"model.backbone={name}: stages[{stage!r}] is not a submodule of the returned "
                    "module, so its weights would not be saved; make it an attribute of that "
                    "module, or make stages a torch.nn.ModuleDict"
                )
        if strides and [*strides] != [*parts]:
            raise UserError(
                f"model.backbone={name}: strides has {', '.join(strides)}, but stages has "
                f"{', '.join(parts)}; set the stride of every stage"
            )
        for key in ("pixel_mean", "pixel_std"):
            setattr(self, key, _three_numbers(network, key, getattr(self, key), name))
        stages = Stages(name, {stage: strides.get(stage) for stage in parts or ["network"]})
        super().__init__(network, image_size, stages, train_from, backbone_to, pool)

    def modules_of(self, name: str) -> list[nn.Module]:
        parts = _stages(self.network)
        return [parts[name]] if parts else [self.network]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        return self.modules_of(name)[0](x)


def _call(name: str) -> tuple[Any, nn.Module]:
    """The function with this name, and its return value."""
    place, _, path = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _failed(name, "importing it", error) from error
        raise UserError(
            f"model.backbone={name}: there is no module {error.name}, neither in the current "
            f"folder ({os.getcwd()}) nor among the installed ones"
        ) from error
    except Exception as error:
        raise _failed(name, "importing it", error) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise UserError(f"model.backbone={name}: {place} has no {path}")
        found = getattr(found, attribute)
    if not callable(found):
        raise UserError(
            f"model.backbone={name}: {path} is a {type(found).__name__}, expected a function that "
            "returns a torch.nn.Module"
        )
    try:
        network = found()
    except Exception as error:
        raise _failed(name, "calling it without arguments", error) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"model.backbone={name}: it returned a {type(network).__name__}, expected a "
            "torch.nn.Module"
        )
    return found, network


def _failed(name: str, what: str, error: Exception) -> UserError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(
        f"model.backbone={name}: {what} failed in {where.filename}, line {where.lineno}: {reason}"
    )


def _stages(network: nn.Module) -> Mapping[str, Any]:
    """The stages that the network declares; an attribute ``stages`` may also be something else."""
    stages = getattr(network, "stages", None)
    if isinstance(stages, nn.ModuleDict):
        return dict(stages.items())
    return stages if isinstance(stages, Mapping) else {}


def _three_numbers(
    network: nn.Module, key: str, default: tuple[float, float, float], name: str
) -> tuple[float, float, float]:
    value = getattr(network, key, default)
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        numbers = []
    if len(numbers) != 3 or (key == "pixel_std" and min(numbers) <= 0):
        raise UserError(
            f"model.backbone={name}: {key} is {value!r}, expected three numbers (for RGB in 0 to 1)"
            + (" above 0" if key == "pixel_std" else "")
        )
    return numbers[0], numbers[1], numbers[2]
