"""Base class of the backbones: stages, of which the first may be frozen, and a pooling."""

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
GRID = 4  # fields per direction of pool=grid
_STRIDES = {"stride8": 8, "stride16": 16}


@dataclass(frozen=True)
class Stages:
    """The stages of a backbone, from the image on, and the recipe's choices among them.

    Args:
        backbone: the backbone's name, for errors.
        strides: stage -> pixels of the image per pixel of its map; None if unknown.
        cuts: further values of ``model.backbone_to`` -> the stage in which each lies.
    """

    backbone: str
    strides: Mapping[str, int | None]
    cuts: Mapping[str, str] = field(default_factory=dict)

    def plan(self, train_from: str, backbone_to: str) -> tuple[tuple[str, ...], int]:
        """The stages to run, and how many of them are frozen.

        Raises UserError, which names the key, for an unknown stage.
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
        # A stage after the last one that runs: nothing is trained.
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

    A network of clips accepts (n, 3, L, H, W) and returns maps (n, ``out_channels``, t, h, w).

    Stages run in order. CARL trains the last stage and keeps the others pre-trained (section 3.3):
    frozen stages have no gradients, keep their batch-norm statistics, and stay in eval mode under
    ``train()``. Training calls the frozen and the trained part separately; memory then holds the
    map between them, but no intermediate results of either part.

    Args:
        stages: the backbone's stages.
        train_from: first stage that is trained: "all", "last" (the last one that runs), "none", or
            a stage's name; or "batch_norm": only the batch norms are trained (TCC's "only_bn").
        backbone_to: last stage that runs: "last", "stride8" or "stride16" (the last stage whose map
            has that stride), or a stage's name.
        pool: pooling over space: "max", as in CARL's released encoder; "mean", as in torchvision
            and VCLR; "grid", the means of 4 x 4 fields, concatenated, which keep positions.

    Attributes:
        name: the backbone's name in the recipe.
        pixel_mean, pixel_std: mean and standard deviation of RGB in 0 to 1 that normalise images.
        stages: names of the stages that run.
        stride: pixels of the image per pixel of the map, in each direction.
        out_channels: number of channels of the map.
        clips: whether the network is one of clips.
        left_out: prefixes of the names that a weights file of the whole network has in addition.

    Subclasses create their modules in ``__init__`` and then call `choose_trained`.
    """

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    out_channels: int
    clips: bool = False
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
        """Input of a stage to its map."""
        raise NotImplementedError

    def modules_of(self, name: str) -> list[nn.Module]:
        """The modules of a stage."""
        raise NotImplementedError

    def draw_convolutions(self) -> None:
        """Initialise the weights of all convolutions as torchvision does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def choose_trained(self) -> None:
        """Set requires_grad of every parameter."""
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
        """Whether any convolution keeps its initial weights."""
        return self._frozen_stages > 0 or self._only_batch_norm

    @property
    def all_frozen(self) -> bool:
        """Whether nothing is trained and no batch norm updates its statistics."""
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
        """Images to the input of the first trained layer; the images if no stage is frozen."""
        return self._run(x, self.stages[: self._frozen_stages])

    def trained_part(self, x: Tensor) -> Tensor:
        """The remaining stages, up to the map; the identity if everything is frozen."""
        return self._run(x, self.stages[self._frozen_stages :])

    def _run(self, x: Tensor, stages: tuple[str, ...]) -> Tensor:
        for name in stages:
            x = self.run_stage(name, x)
        return x

    def pool(self, maps: Tensor) -> Tensor:
        """Maps to vectors; with "grid" they are (C, 4, 4), flattened, and means over time."""
        if self.pooled_by == "mean":
            return maps.mean((2, 3, 4) if self.clips else (2, 3))
        if self.pooled_by == "grid":
            maps = maps.mean(2) if self.clips else maps
            return F.adaptive_avg_pool2d(maps, GRID).flatten(1)
        largest = F.adaptive_max_pool3d if self.clips else F.adaptive_max_pool2d
        return largest(maps, 1).flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        return self.trained_part(self.frozen_part(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.maps(x))

    def code_version(self) -> str:
        """Identifies the version of a third-party backbone's code; "" for this project's own."""
        return ""

    def package_weights(self) -> Path:
        """The file of pre-trained weights in an installed package.

        Raises UserError if the package is not installed, or if no package has weights.
        """
        raise UserError(
            f"model.weights=package: no package contains weights of {self.name} "
            "(efficientnet_lite0 has one); set model.weights to a file"
        )

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights from a file, under this backbone's names, adapted to its image size."""
        return tensors
