"""Spatial augmentation that is the same for every frame of a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fastseq.video.arguments import as_number, as_range, as_size, check_frames, check_generator

# Rec. 601 luma, the weights of PIL's and the released code's grayscale.
_LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_COLOUR_OPS = ("brightness", "contrast", "saturation", "hue")
# The released blur radii are in pixels of a 224-pixel frame.
_BLUR_REFERENCE_SIZE = 224


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a clip; the defaults are those of CARL's released self-supervised setting.

    One set of parameters is drawn per clip, so frames stay consistent over time. Order: crop and
    resize, flip, colour, grayscale, blur.

    Attributes:
        size: side of the square output in pixels.
        scale: range of the crop's area, as a fraction of the frame's area.
        ratio: aspect ratio of the crop, drawn log-uniformly. After 10 draws that do not fit in the
            frame, the central crop with the nearest allowed ratio is taken.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter.
        strength: multiplies the four jitter ranges.
        brightness, contrast, saturation: a factor 1 + U(-r strength, r strength), at least 0.
        hue: a turn of U(-r strength, r strength) of the colour circle.
        grayscale: probability of grayscale.
        blur: probability of Gaussian blur. Default 0.4, the released code's overall rate: 0.5
            inside the jitter, itself 0.8. There the blur is applied by accident after each of the
            four jitter operations; here once.
        blur_sigma: standard deviation in pixels at size 224, scaled with `size`.
        per_clip: False: each frame of the tuples of `SegmentTuples` has a separate draw, as in
            VCLR's released code. Clips of several frames always share one draw.

    The colour operations come in random order but act as one linear map per clip: contrast pulls
    towards the mean luma of the clip, hue is a rotation in YIQ, and values are clipped once at the
    end. The released code rounds and clips each frame after each operation.
    """

    size: int = 224
    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale: float = 0.2
    blur: float = 0.4
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    per_clip: bool = True

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"size": as_size(self.size)}
        for name in ("flip", "jitter", "grayscale", "blur"):
            checked[name] = as_number(name, getattr(self, name))
            if not 0 <= checked[name] <= 1:
                raise ValueError(f"{name} must be a probability, 0 to 1, got {checked[name]}")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            checked[name] = as_number(name, getattr(self, name))
            if not 0 <= checked[name] < math.inf:
                what = "must not be negative" if checked[name] < 0 else "must be finite"
                raise ValueError(f"{name} {what}, got {checked[name]}")
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("blur_sigma", math.inf)):
            checked[name] = as_range(name, getattr(self, name), most)
        if not isinstance(self.per_clip, (bool, np.bool_)):
            raise TypeError(f"per_clip must be True or False, got {self.per_clip!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # NumPy numbers become Python's


def check_augmentation(spec: object, name: str) -> None:
    if not isinstance(spec, Augmentation):
        raise TypeError(
            f"{name} must be a fastseq.video.Augmentation, got {type(spec).__name__}; pass "
            "Augmentation(size=...)"
        )


@dataclass(frozen=True)
class ClipDraw:
    """The parameters drawn for one clip, all that an engine needs to apply an `Augmentation`.

    `colour` lists (operation, amount) in their order; `blur_sigma` is in output pixels, 0 for none.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool
    colour: tuple[tuple[str, float], ...]
    blur_sigma: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.height, self.width


def draw_clip(
    height: int, width: int, spec: Augmentation, generator: np.random.Generator
) -> ClipDraw:
    """Draw one clip's parameters for frames of `height` by `width` pixels."""
    box = _draw_crop(height, width, spec, generator)
    flip = generator.random() < spec.flip
    colour: list[tuple[str, float]] = []
    if generator.random() < spec.jitter:
        for op in generator.permutation(_COLOUR_OPS):
            reach = getattr(spec, op) * spec.strength
            amount = generator.uniform(-reach, reach)
            colour.append((str(op), amount if op == "hue" else max(0.0, 1.0 + amount)))
    if generator.random() < spec.grayscale:
        colour.append(("saturation", 0.0))
    sigma = 0.0
    if generator.random() < spec.blur:
        sigma = generator.uniform(*spec.blur_sigma) * spec.size / _BLUR_REFERENCE_SIZE
    return ClipDraw(*box, flip, tuple(colour), sigma)


def _draw_crop(
    height: int, width: int, spec: Augmentation, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    low, high = np.log(spec.ratio)
    for _ in range(10):
        area = height * width * generator.uniform(*spec.scale)
        ratio = math.exp(generator.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(generator.integers(0, height - crop_height + 1))
            left = int(generator.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    return central_crop(height, width, spec.ratio)


def central_crop(
    height: int, width: int, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest central crop with an aspect ratio in `ratio`."""
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def augment_clip(
    frames: torch.Tensor, spec: Augmentation, generator: np.random.Generator
) -> torch.Tensor:
    """Augment a clip with one draw for all its frames.

    Args:
        frames: uint8 (T, H, W, 3), RGB.
        spec: the augmentation.
        generator: the only source of randomness.
    Returns:
        uint8 (T, 3, size, size).
    Raises:
        TypeError, ValueError: an argument of another type, frames of another dtype or shape.

    Example:
        >>> frames = torch.zeros(8, 240, 320, 3, dtype=torch.uint8)
        >>> augment_clip(frames, Augmentation(size=112), np.random.default_rng(0)).shape
        torch.Size([8, 3, 112, 112])
    """
    check_frames(frames)
    check_augmentation(spec, "spec")
    check_generator(generator)
    draw = draw_clip(frames.shape[1], frames.shape[2], spec, generator)
    return apply_draw(frames, draw, spec.size)


def apply_draw(frames: torch.Tensor, draw: ClipDraw, size: int) -> torch.Tensor:
    """Apply drawn parameters: uint8 (T, H, W, 3) -> uint8 (T, 3, size, size)."""
    check_frames(frames)
    if not isinstance(draw, ClipDraw):
        raise TypeError(f"draw must be a result of draw_clip or eval_draw, got {draw!r}")
    size = as_size(size)
    resized = torch.empty(len(frames), size, size, 3, dtype=torch.uint8)
    count = _chunk_frames(size)
    for chunk, into in zip(frames.split(count), resized.split(count), strict=True):
        crop_resize(chunk, draw.box, into)
    return finish(resized, draw, torch.empty(len(frames), 3, size, size, dtype=torch.uint8))


def finish(resized: torch.Tensor, draw: ClipDraw, out: torch.Tensor) -> torch.Tensor:
    """Flip, colour and blur a cropped clip: uint8 (T, S, S, 3) into `out` (T, 3, S, S)."""
    size = resized.shape[1]
    if not len(resized):
        return out
    if draw.colour:
        mean = sum(f.mean((0, 1), dtype=torch.float32).double() for f in resized) / len(resized)
        matrix, bias = (torch.from_numpy(x).float() for x in colour_map(draw.colour, mean.numpy()))
    if draw.blur_sigma:
        weights = blur_kernel(draw.blur_sigma, size).tolist()
    # A few frames at a time in the same memory: fresh pages take longer than the arithmetic.
    count = min(_chunk_frames(size), len(resized))
    all_planes = torch.empty(count, 3, size, size, dtype=torch.uint8)
    all_pixels, all_mapped = torch.empty(2, count, 3, size, size)
    for frames, into in zip(resized.split(count), out.split(count), strict=True):
        n = len(frames)
        planes, pixels, mapped = all_planes[:n], all_pixels[:n], all_mapped[:n]
        planes.copy_((frames.flip(2) if draw.flip else frames).permute(0, 3, 1, 2))
        if not draw.colour and not draw.blur_sigma:
            into.copy_(planes)
            continue
        result = pixels.copy_(planes)
        if draw.colour:
            result, weight = mapped, matrix.expand(n, 3, 3)
            torch.baddbmm(bias[:, None], weight, pixels.flatten(2), out=mapped.flatten(2))
            mapped.clamp_(0, 255)  # the blur is applied to the clipped picture
        if draw.blur_sigma:
            _blur(result, weights)
        into.copy_(result.add_(0.5))
    return out


def _chunk_frames(size: int) -> int:
    """Frames of `size` to process at a time: about as many pixels as one frame of 224."""
    return max(1, (224 // size) ** 2)


def colour_map(
    colour: tuple[tuple[str, float], ...], mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold colour operations into rgb -> matrix @ rgb + bias, (3, 3) and (3,) float64.

    Brightness x -> b x. Contrast x -> c x + (1 - c) m, m the mean luma of the clip at that point.
    Saturation x -> s x + (1 - s) luma(x). Hue h turns the (I, Q) plane by 2 pi h.
    `mean` (3,) is the clip's mean colour before the first operation.
    """
    matrix, bias = np.eye(3), np.zeros(3)
    for op, amount in colour:
        if op == "brightness":
            step, shift = amount * np.eye(3), np.zeros(3)
        elif op == "contrast":
            luma = _LUMA @ (matrix @ mean + bias)
            step, shift = amount * np.eye(3), np.full(3, (1 - amount) * luma)
        elif op == "saturation":
            step = amount * np.eye(3) + (1 - amount) * np.outer(np.ones(3), _LUMA)
            shift = np.zeros(3)
        elif op == "hue":
            cos, sin = math.cos(2 * math.pi * amount), math.sin(2 * math.pi * amount)
            turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
            step, shift = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ, np.zeros(3)
        else:
            raise ValueError(f"unknown colour operation {op!r}, known: {', '.join(_COLOUR_OPS)}")
        matrix, bias = step @ matrix, step @ bias + shift
    return matrix, bias


def blur_kernel(sigma: float, size: int) -> np.ndarray:
    """Weights of a Gaussian cut at 3 sigma and at a picture's side: float64, odd number, sum 1."""
    reach = min(max(1, math.ceil(3 * sigma)), size - 1)
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return weight / weight.sum()


def _blur(pictures: torch.Tensor, weights: list[float]) -> None:
    """Convolve (T, 3, S, S) down, then across. Beyond its edges a picture is continued by its
    mirror image (about the centres of the outermost pixels), as in DALI."""
    reach, size = len(weights) // 2, pictures.shape[2]
    for axis, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(pictures, pad, mode="reflect")
        pictures.zero_()
        for shift, weight in enumerate(weights):
            pictures.add_(padded.narrow(axis, shift, size), alpha=weight)


def eval_transform(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Resize frames for evaluation: uint8 (T, H, W, 3) -> uint8 (T, 3, size, size).

    The largest central crop with an aspect ratio between 3:4 and 4:3 is resized to the square. That
    is the average geometry of the training crops. (The released code evaluates on the central
    `size` pixels of the unscaled frame, which never occur in training.)

    Example:
        >>> eval_transform(torch.zeros(8, 240, 320, 3, dtype=torch.uint8), 112).shape
        torch.Size([8, 3, 112, 112])
    """
    check_frames(frames)
    return apply_draw(frames, eval_draw(frames.shape[1], frames.shape[2]), size)


def eval_draw(height: int, width: int) -> ClipDraw:
    """The draw of `eval_transform` for frames of `height` by `width` pixels: only a crop."""
    return ClipDraw(*central_crop(height, width), flip=False, colour=(), blur_sigma=0.0)


def crop_resize(frames: torch.Tensor, box: tuple[int, int, int, int], out: torch.Tensor) -> None:
    """Antialiased bilinear on bytes: the (top, left, height, width) of (T, H, W, 3) into `out`,
    (T, S, S, 3)."""
    top, left, height, width = box
    clip = frames[:, top : top + height, left : left + width]
    if clip.shape[1:] != out.shape[1:]:
        # torch's fast path: bytes with the channels last, as frames lie in memory.
        clip = clip.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        clip = F.interpolate(clip, out.shape[1:3], mode="bilinear", antialias=True)
        clip = clip.permute(0, 2, 3, 1)
    out.copy_(clip)
