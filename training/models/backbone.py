"""What every backbone has: stages and a pool; the first stages may be frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from training.support.command import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
POOLS = ("max", "mean", "grid")
GRID = 4  # fields in each direction of pool=grid
_STRIDES = {"stride8": 8, "stride16": 16}


@dataclass(frozen=True)
class Stages:
    """The stages of a backbone from the image on, and what a recipe may say of them.

    Args:
        backbone: its name, for errors.
        strides: stage -> pixels of the image per pixel of its map, None where that is not known.
        cuts: further ends for ``model.backbone_to``, each with the stage that it lies in.
    """

    backbone: str
    strides: Mapping[str, int | None]
    cuts: Mapping[str, str] = field(default_factory=dict)

    def plan(self, train_from: str, backbone_to: str) -> tuple[tuple[str, ...], int]:
        """The stages that are run, and how many of them are frozen.

        Raises UserError, which names the key, for anything that is no stage.
        """
        run = self._until(backbone_to)
        if train_from in ("all", "batch_norm"):
            return run, 0
        if train_from == "none":
            return run, len(run)
        if len(self.strides) == 1:
            raise UserError(
                f"model.train_from: {self.backbone} is one stage; expected all, none or "
                f"batch_norm, got {train_from!r}"
            )
        if train_from == "last":
            return run, len(run) - 1
        if train_from not in self.strides:
            raise UserError(
                f"model.train_from: {self.backbone} has stages {', '.join(self.strides)}; expected "
                f"all, last, none, batch_norm or one of them, got {train_from!r}"
            )
        # Beyond the last stage that is run: then nothing is trained.
        return run, min([*self.strides].index(train_from), len(run))

    def _until(self, backbone_to: str) -> tuple[str, ...]:
        names = [*self.strides]
        if backbone_to == "last":
            return tuple(names)
        if backbone_to in _STRIDES:
            wanted = _STRIDES[backbone_to]
            fitting = [name for name, stride in self.strides.items() if stride == wanted]
            if not fitting:
                known = {name: stride for name, stride in self.strides.items() if stride}
                there = ", ".join(f"{name} {stride}" for name, stride in known.items())
                raise UserError(
                    f"model.backbone_to={backbone_to}: no stage of {self.backbone} has a map of "
                    f"stride {wanted} (known strides: {there or 'none'}); expected last"
                    + (f" or one of {', '.join(names)}" if len(names) > 1 else "")
                )
            end = fitting[-1]
        else:
            end = self.cuts.get(backbone_to, backbone_to)
        if end not in self.strides or len(names) == 1:
            ends = ", ".join([*names, *self.cuts])
            raise UserError(
                f"model.backbone_to: {self.backbone} "
                + (
                    f"has stages {ends}; expected last, stride8, stride16 or one of them"
                    if len(names) > 1
                    else "is one stage; expected last"
                )
                + f", got {backbone_to!r}"
            )
        return tuple(names[: names.index(end) + 1])


class Backbone(nn.Module):
    """Images (n, 3, H, W) to maps (n, ``out_channels``, h, w) and vectors (n, ``out_features``).

    The stages are run in order. CARL trains the last one and keeps the rest as pre-trained (section
    3.3): frozen stages have no gradients, keep their batch-norm statistics, and stay in eval mode
    under ``train()``. The two parts are called one by one in training: memory then holds what lies
    between them, and nothing of what either computes on the way.

    Args:
        stages: those that there are.
        train_from: first stage that is trained: "all", "last" of those that are run, "none", or its
            name; or "batch_norm": all batch norms and nothing else (TCC's "only_bn").
        backbone_to: last stage that is run: "last", "stride8" or "stride16" (the last one whose map
            has that stride), or its name.
        pool: over space. "max", as CARL's released encoder does; "mean", as torchvision and VCLR
            do; "grid": the means of 4 x 4 fields, one after the other, which keep where things are.

    Attributes:
        name: as in the recipe.
        pixel_mean, pixel_std: of RGB in 0 to 1; images are to be normalised by them.
        stages: names of those that are run.
        stride: pixels of the image per pixel of the map, in each direction.
        out_channels: of the map.
        left_out: what names begin with that the whole network has in a weights file beyond these.

    Subclasses make their modules in ``__init__`` and then call `choose_trained`.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    out_channels: int
    left_out: tuple[str, ...] = ()

    def __init__(
        self, stages: Stages, train_from: str, backbone_to: str = "last", pool: str = "max"
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"model.pool: expected one of {', '.join(POOLS)}, got {pool!r}")
        self.name = stages.backbone
        self.stages, self._frozen_stages = stages.plan(train_from, backbone_to)
        self.stride = stages.strides[self.stages[-1]]
        self.pooled_by = pool
        self._only_batch_norm = train_from == "batch_norm"

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        """What enters a stage to its map."""
        raise NotImplementedError

    def modules_of(self, name: str) -> list[nn.Module]:
        """The modules that a stage consists of."""
        raise NotImplementedError

    def draw_convolutions(self) -> None:
        """Initial weights of all convolutions, as torchvision has them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def choose_trained(self) -> None:
        """Say of every parameter whether it is trained."""
        if self._only_batch_norm:
            norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
            if not norms:
                raise UserError(
                    f"model.train_from=batch_norm: {self.name} has no batch norm; expected all, "
                    "last, none or a stage"
                )
            self.requires_grad_(False)
            for module in norms:
                module.requires_grad_(True)
        elif self._frozen_stages:
            self.requires_grad_(False)
            for name in self.stages[self._frozen_stages :]:
                for module in self.modules_of(name):
                    module.requires_grad_(True)

    @property
    def out_features(self) -> int:
        """Length of the vectors."""
        return self.out_channels * (GRID * GRID if self.pooled_by == "grid" else 1)

    @property
    def frozen(self) -> bool:
        """Whether any convolution keeps the weights it started with."""
        return self._frozen_stages > 0 or self._only_batch_norm

    @property
    def all_frozen(self) -> bool:
        """Whether nothing is trained and no batch norm takes statistics."""
        return self._frozen_stages == len(self.stages)

    @property
    def starts_frozen(self) -> bool:
        """Whether `frozen_part` does anything."""
        return self._frozen_stages > 0

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode and not self.all_frozen)
        for name in self.stages[: self._frozen_stages]:
            for module in self.modules_of(name):
                module.eval()
        return self

    def frozen_part(self, x: Tensor) -> Tensor:
        """Images to what the first trained layer takes; the images themselves if that is first."""
        return self._run(x, self.stages[: self._frozen_stages])

    def trained_part(self, x: Tensor) -> Tensor:
        """The rest, up to the map; nothing at all where everything is frozen."""
        return self._run(x, self.stages[self._frozen_stages :])

    def _run(self, x: Tensor, stages: tuple[str, ...]) -> Tensor:
        for name in stages:
            x = self.run_stage(name, x)
        return x

    def pool(self, maps: Tensor) -> Tensor:
        """Maps to vectors; those of "grid" are (C, 4, 4), flattened."""
        if self.pooled_by == "mean":
            return maps.mean((2, 3))
        if self.pooled_by == "grid":
            return F.adaptive_avg_pool2d(maps, GRID).flatten(1)
        return F.adaptive_max_pool2d(maps, 1).flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        return self.trained_part(self.frozen_part(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.maps(x))

    def code_version(self) -> str:
        """Tells the code of a backbone from elsewhere from its other versions; "" for our own."""
        return ""

    def package_weights(self) -> Path:
        """The file of pre-trained weights in an installed package.

        Raises UserError where that is not installed, or no package has any.
        """
        raise UserError(
            f"model.weights=package: no package brings weights of {self.name} "
            "(efficientnet_lite0 has one); give a file"
        )

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a file, under this backbone's names, made to fit its image size."""
        return tensors
