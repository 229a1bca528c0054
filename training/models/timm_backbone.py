"""Networks of timm: ``model.backbone=timm:NAME``."""

import math

from torch import Tensor, nn

from training.models.adopted import AdoptedBackbone
from training.models.backbone import Stages
from training.support.command import UserError

PREFIX = "timm:"


def is_timm(name: str) -> bool:
    """Whether ``model.backbone`` names a network of timm."""
    return name.startswith(PREFIX)


class TimmBackbone(AdoptedBackbone):
    """A network of timm with feature maps, which include the patch tokens of Vision Transformers.

    Its weights are random. A weights file (``model.weights``) may be timm's own or have the same
    names, such as those of DINO and MAE for Vision Transformers. Nothing is downloaded. The stages
    are timm's ``feature_info`` with their strides, such as "layer1" to "layer4" or "blocks.0" to
    "blocks.11". A Transformer's last map is normalised, as its class token is.

    The network runs as one part: if ``train_from`` names a stage, the frozen stages before it are
    recomputed in backward too, unlike in this project's own backbones.

    Args:
        name: "timm:" and a name that timm.create_model accepts.
        image_size: height and width of the images in pixels. Position embeddings are created for
            this size, and those of a weights file are interpolated to it.
        train_from, backbone_to, pool: see `Backbone`.

    Raises:
        UserError: timm is not installed or has no such network, or the network has no feature maps
            or does not accept images of this size.
    """

    def __init__(
        self, name: str, image_size: int, train_from: str, backbone_to: str, pool: str
    ) -> None:
        network = _create(name, image_size)
        info = _feature_info(network, name)
        stages = Stages(name, {one["module"]: one["reduction"] for one in info})
        run, frozen = stages.plan(train_from, backbone_to)
        whole = [*network.state_dict()]
        self._index = len(run) - 1
        has_norm = isinstance(getattr(network, "norm", None), nn.Module)
        self._options = {"norm": True} if has_norm and len(run) == len(info) else {}
        network.prune_intermediate_layers([self._index], prune_norm=not self._options)
        kept = network.state_dict()
        self.left_out = tuple(key for key in whole if key not in kept)
        pixels = getattr(network, "pretrained_cfg", None) or network.default_cfg
        self.pixel_mean, self.pixel_std = tuple(pixels["mean"]), tuple(pixels["std"])
        self._modules_of = _stage_modules(network, run)
        if 0 < frozen < len(run) and not self._modules_of:
            raise UserError(
                f"model.train_from: the parameters of {name} cannot be assigned to stages; "
                f"expected all, none or batch_norm, got {train_from!r}"
            )
        super().__init__(network, image_size, stages, train_from, backbone_to, pool)

    def modules_of(self, name: str) -> list[nn.Module]:
        return self._modules_of.get(name, [])  # without any, all stages are frozen or none

    @property
    def starts_frozen(self) -> bool:
        return self.all_frozen

    def frozen_part(self, x: Tensor) -> Tensor:
        return self._maps(x) if self.all_frozen else x

    def trained_part(self, x: Tensor) -> Tensor:
        return x if self.all_frozen else self._maps(x)

    def _maps(self, x: Tensor) -> Tensor:
        return self.network.forward_intermediates(
            x, indices=[self._index], intermediates_only=True, stop_early=True, **self._options
        )[0]

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate the position embeddings of another image size to this one."""
        own, given = getattr(self.network, "pos_embed", None), tensors.get("pos_embed")
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        if own is None or given is None or grid is None or own.dim() != 3 or given.dim() != 3:
            return tensors
        tokens = own.shape[1] - math.prod(grid)  # tokens before the patches
        side = math.isqrt(max(given.shape[1] - tokens, 0))
        # Other widths, or no square grid: another architecture, which the loader reports.
        if own.shape[1] == given.shape[1] or side**2 != given.shape[1] - tokens:
            return tensors
        from timm.layers import resample_abs_pos_embed

        resized = resample_abs_pos_embed(given, [*grid], [side, side], num_prefix_tokens=tokens)
        return tensors | {"pos_embed": resized}


def _create(name: str, image_size: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f'model.backbone={name} needs timm: pip install "fastseq[timm]". '
            f"({type(error).__name__}: {error})"
        ) from error
    known = name.removeprefix(PREFIX)
    if not timm.is_model(known.partition(".")[0]):
        alike = ", ".join(timm.list_models(f"*{known.partition('_')[0]}*")[:5])
        raise UserError(
            f"model.backbone={name}: timm {timm.__version__} has no {known}"
            + (f"; similar names: {alike}" if alike else "")
        )
    fixed = timm.get_pretrained_cfg(known).fixed_input_size
    sizes = {"img_size": image_size} if fixed else {}
    try:
        try:
            return timm.create_model(known, pretrained=False, **sizes)
        except TypeError:  # its size is fixed and not an option
            return timm.create_model(known, pretrained=False)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"model.backbone={name} cannot be made for images of {image_size} pixels "
            f"(augmentation.size): {reason}"
        ) from error


def _feature_info(network: nn.Module, name: str) -> list[dict]:
    info = getattr(network, "feature_info", None)
    info = getattr(info, "info", info)
    able = hasattr(network, "forward_intermediates")
    if not able or not hasattr(network, "prune_intermediate_layers") or not info:
        raise UserError(
            f"model.backbone={name}: timm returns no feature maps for it (no "
            "forward_intermediates); choose another network, or wrap this one: "
            "model.backbone=package.module:function"
        )
    return info


def _stage_modules(network: nn.Module, stages: tuple[str, ...]) -> dict[str, list[nn.Module]]:
    """The modules of each stage: those up to its end that no earlier stage has.

    timm's networks register their modules in the order in which they run. A module that contains
    parts of several stages belongs to none, and neither do its own parameters, such as position
    embeddings. Empty if the stages are not modules.
    """
    names = [name for name, _ in network.named_modules()]
    if not {*stages} <= {*names}:
        return {}

    def last_inside(outer: str) -> int:
        return max(i for i, name in enumerate(names) if f"{name}.".startswith(f"{outer}."))

    ends = [last_inside(stage) for stage in stages]
    ends[-1] = len(names) - 1

    def stage_of(place: int) -> int:
        return next(i for i, end in enumerate(ends) if place <= end)

    modules: dict[str, list[nn.Module]] = {stage: [] for stage in stages}
    taken = ""
    for place, (name, module) in enumerate(network.named_modules()):
        if not name or (taken and name.startswith(f"{taken}.")):
            continue
        if stage_of(place) == stage_of(last_inside(name)):
            taken = name
            modules[stages[stage_of(place)]].append(module)
    return modules
