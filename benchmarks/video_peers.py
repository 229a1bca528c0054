"""Reading clips without fastseq: as CARL's released loader does it, and with plain PyAV."""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import av
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fastseq.video import Augmentation, Reading, probe
from fastseq.video.augment import apply_draw
from fastseq.video.decode import deliver
from fastseq.video.readings import wanted_frames
from fastseq.video.timeline import Deadline

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def whole_file(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


class Released(Dataset):
    """CARL_code's method: the whole file to float, then the frames of each view. Crop and flip on
    tensors; colour frame by frame in PIL, with the blur after each of its operations.
    """

    def __init__(self, readings: Sequence[Reading], size: int, spec: Augmentation | None):
        self.readings, self.size, self.spec = readings, size, spec

    def __len__(self) -> int:
        return len(self.readings)

    def __getitem__(self, index: int) -> torch.Tensor:
        reading = self.readings[index]
        video = torch.from_numpy(whole_file(reading.path)).permute(0, 3, 1, 2).float() / 255
        clips = [self._clip(video[torch.from_numpy(clip.frames)]) for clip in reading.clips]
        return torch.stack(clips)

    def _clip(self, frames: torch.Tensor) -> torch.Tensor:
        height, width = frames.shape[-2:]
        spec = self.spec
        area = 1.0 if spec is None else random.uniform(*spec.scale)
        side = int(min(height, width) * area**0.5)
        top, left = random.randint(0, height - side), random.randint(0, width - side)
        frames = frames[..., top : top + side, left : left + side]
        frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", align_corners=False)
        if spec is None:
            return frames
        if random.random() < spec.flip:
            frames = frames.flip(-1)
        if random.random() < spec.jitter:
            frames = self._jitter(frames)
        if random.random() < spec.grayscale:
            frames = frames.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return (frames - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def _jitter(self, frames: torch.Tensor) -> torch.Tensor:
        spec, enhance = self.spec, ImageEnhance
        steps = [
            (one, max(0.0, 1 + random.uniform(-reach, reach)))
            for one, reach in (
                (enhance.Brightness, spec.brightness),
                (enhance.Contrast, spec.contrast),
                (enhance.Color, spec.saturation),
            )
        ] + [(_Hue, random.uniform(-spec.hue, spec.hue))]
        random.shuffle(steps)
        blur = random.uniform(*spec.blur_sigma) if random.random() < 0.5 else None
        out = []
        for frame in frames:
            picture = Image.fromarray((frame.permute(1, 2, 0) * 255).byte().numpy())
            for one, amount in steps:
                picture = one(picture).enhance(amount)
                if blur is not None:
                    picture = picture.filter(ImageFilter.GaussianBlur(blur))
            out.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
        return torch.stack(out)


class _Hue:
    """Turns the hue of a picture, with the interface of ImageEnhance's classes."""

    def __init__(self, picture: Image.Image):
        self.picture = picture

    def enhance(self, turn: float) -> Image.Image:
        h, s, v = self.picture.convert("HSV").split()
        turned = (np.asarray(h, dtype=np.int16) + round(turn * 255)) % 256
        return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")


class PlainPyAV(Dataset):
    """Plain PyAV: decode up to the last frame wanted, convert the wanted frames at full size, then
    apply fastseq's augmentation to them.
    """

    def __init__(self, readings: Sequence[Reading], size: int, spec: Augmentation | None):
        self.readings, self.size = readings, size

    def __len__(self) -> int:
        return len(self.readings)

    def __getitem__(self, index: int) -> torch.Tensor:
        reading = self.readings[index]
        clips = []
        for clip in reading.clips:
            wanted, frames = set(clip.frames.tolist()), {}
            with av.open(reading.path) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        frames[number] = frame.to_ndarray(format="rgb24")
                        if len(frames) == len(wanted):
                            break
            pixels = torch.from_numpy(np.stack([frames[k] for k in clip.frames.tolist()]))
            scale = min(reading.height, reading.width) / reading.side
            draw = clip.draw
            edges = ("top", "left", "height", "width")
            box = {name: int(getattr(draw, name) * scale) for name in edges}
            clips.append(apply_draw(pixels, replace(draw, **box), self.size))
        return torch.stack(clips)


class Decoding(Dataset):
    """Decodes as fastseq's PyAV engine does and discards the frames."""

    def __init__(self, readings: Sequence[Reading], size: int, spec: Augmentation | None):
        self.readings = readings

    def __len__(self) -> int:
        return len(self.readings)

    def __getitem__(self, index: int) -> torch.Tensor:
        path, deadline = self.readings[index].path, Deadline(self.readings[index].path, None)
        wanted, _ = wanted_frames(self.readings[index])
        deliver(path, wanted, _info(path), lambda frame: frame, deadline, lambda place, frame: None)
        return torch.zeros(1)


_info = functools.cache(probe)


def in_workers(dataset: Dataset, workers: int) -> Iterator[torch.Tensor]:
    """One item per batch, as in CARL_code on each GPU: no worker waits for another."""
    yield from DataLoader(dataset, 1, num_workers=workers)
