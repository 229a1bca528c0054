"""A third-party network as a backbone, with the parameter names of its weights files."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.models.backbone import Backbone, Stages
from training.support.command import UserError


class AdoptedBackbone(Backbone):
    """``network`` as a backbone whose parameters keep their names.

    Weights files use these names. As a child module the network would add a prefix to them, so it
    is not a child: the two modules share their tables of parameters, buffers and children.

    Args:
        network: maps images (n, 3, H, W) to maps (n, C, h, w).
        image_size: height and width of the images in pixels.
        stages, train_from, backbone_to, pool: see `Backbone`.

    Raises:
        UserError: the network does not accept such images, or does not return maps.
    """

    makers: tuple[Any, ...] = ()  # functions that made the network; their files belong to its code

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        stages: Stages,
        train_from: str,
        backbone_to: str,
        pool: str,
    ) -> None:
        super().__init__(stages, train_from, backbone_to, pool)
        self.__dict__["network"] = network
        for table in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[table] = network.__dict__[table]
        self.choose_trained()
        self._try(image_size)

    def code_version(self) -> str:
        """A digest of the files that define the network's classes and the functions that made it.

        Files of torch, and files that these import, are not included.
        """
        classes = {type(module) for module in self.network.modules()}
        own = [one for one in classes if not one.__module__.startswith("torch.")]
        files = {path for one in (*own, *self.makers) if (path := _source(one))}
        digests = sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def _try(self, size: int) -> None:
        """Run one image of zeros to find the map's size and the parameters that it depends on."""
        self.eval()
        try:
            maps = self.maps(torch.zeros(1, 3, size, size))
        except Exception as error:
            if any(isinstance(module, nn.Conv3d) for module in self.network.modules()):
                raise UserError(
                    f"model.backbone={self.name} has 3-D convolutions and fails with an image; "
                    "expected a network of images. Networks of clips are small_cnn3d, r3d_18, "
                    "r3d_50, r2plus1d_18 and s3d"
                ) from error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"model.backbone={self.name} fails with one image of {size} x {size} pixels "
                f"(augmentation.size): {reason}"
            ) from error
        if not isinstance(maps, Tensor) or maps.dim() != 4 or not maps.is_floating_point():
            got = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps)
            raise UserError(
                f"model.backbone={self.name}: expected floating-point maps (n, C, h, w), got {got} "
                "for one image. Convert tokens (n, L, C) to a map first: "
                "tokens.transpose(1, 2).unflatten(2, (h, w)), without class tokens"
            )
        self.out_channels = maps.shape[1]
        if self.stride is None:
            self.stride = round(size / maps.shape[2])
        trained = [p for p in self.parameters() if p.requires_grad]
        if trained:  # excludes parameters that the map does not depend on, such as a classifier
            if not maps.requires_grad:
                raise UserError(
                    f"model.backbone={self.name}: the maps do not depend on the parameters that "
                    "model.train_from trains; does the network run under torch.no_grad()?"
                )
            found = torch.autograd.grad(maps.sum(), trained, allow_unused=True)
            for parameter, gradient in zip(trained, found, strict=True):
                parameter.requires_grad_(gradient is not None)
        self.train()

    def modules_of(self, name: str) -> list[nn.Module]:
        return [self.network]

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> "AdoptedBackbone":
        super().train(mode)
        self.network.training = self.training  # the network is not a child, but its children are
        return self


def _source(what: Any) -> str | None:
    try:
        return inspect.getsourcefile(what)
    except TypeError:  # defined in C or in an interactive session
        return None
