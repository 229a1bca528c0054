"""Measures the memory of one training step in a separate process (for training.memory).

Reads {"recipe", "overrides", "frames"} as JSON from stdin, writes the measurement to stdout. As one
of several ranks that torchrun starts, it writes the measurement of the rank with the highest peak.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from training.loop.precision import precision_name
from training.loop.random_batch import random_batch
from training.loop.step import GradientStep
from training.recipe.schema import SHORT_CLIPS
from training.support import distributed

if TYPE_CHECKING:
    from training.recipe.schema import Config

# In the order of the step; layer4 stands for the trained part of any backbone. The remaining memory
# is temporary: scratch, gradients, and in backward the results that checkpointing recomputes.
PARTS = ("frames", "frozen", "layer4", "transformer", "loss")
# Those of SHORT_CLIPS, whose length is data.tuple_frames; loss includes the heads.
CLIP_PARTS = ("frames", "keys", "frozen", "layer4", "loss")
WARM_UP_FRAMES = 8


class Meter:
    """Measures the memory that each part of a step adds.

    On a GPU it asks PyTorch's allocator. On a CPU it reads the resident size of the process, which
    includes memory outside tensors, such as the scratch of convolutions.
    """

    def __init__(self, device: torch.device, parts: Sequence[str] = PARTS) -> None:
        self.device = device
        self.kept = dict.fromkeys(parts, 0)
        self.part: str | None = None
        self.baseline = self.last = 0

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.baseline = self.last = self.in_use()
        self.part = next(iter(self.kept))

    def switch(self, part: str | None) -> str | None:
        """Assign memory to this part from now on (None: to no part); returns the previous part."""
        now, before = self.in_use(), self.part
        if before is not None:
            self.kept[before] += now - self.last
        self.last, self.part = now, part
        return before

    def in_use(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak(self) -> int:
        """Peak in bytes above the memory in use at the start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.baseline
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 - self.baseline
        raise RuntimeError("/proc/self/status has no VmHWM; measuring on a CPU needs Linux")


class _Marked:
    """A callable whose memory counts for a part, but not when backward calls it again."""

    def __init__(self, call: Any, meter: Meter, part: str, *, last: bool = False) -> None:
        self._call, self._meter, self._part, self._last = call, meter, part, last

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._meter.part is None:
            return self._call(*args, **options)
        before = self._meter.switch(self._part)
        result = self._call(*args, **options)
        self._meter.switch(None if self._last else before)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def measure(cfg: "Config") -> dict[str, Any]:
    """Memory in bytes and time in seconds of a step on random frames of the recipe's sizes.

    T is ``data.num_frames``; with the clips of SHORT_CLIPS it is ``data.tuple_frames``.
    """
    from training.loop.trainer import Trainer
    from training.runs.model import initial_model

    trainer = Trainer(cfg, initial_model(cfg), SimpleNamespace(batches_per_epoch=1), Path())
    step = trainer.gradient_step
    frames = cfg.data.tuple_frames if cfg.data.clips in SHORT_CLIPS else cfg.data.num_frames
    step.distribute()
    # A short one on a CPU: memory that a long one leaves in the heap would not be counted later.
    parts = cfg.data.split_time
    warm_up = frames if step.device.type == "cuda" else min(frames, WARM_UP_FRAMES * parts)
    # With fp16 the first steps may only halve the scale, without the optimizer's state.
    while step([_part_of_batch(cfg, step, warm_up)], cfg.optim.lr, list).overflow:
        pass
    return measure_step(cfg, step, frames)


def measure_step(cfg: "Config", step: GradientStep, frames: int) -> dict[str, Any]:
    """The same for a step that has run before, with clips of this length."""
    of_clips = cfg.data.clips in SHORT_CLIPS
    device, meter = step.device, Meter(step.device, CLIP_PARTS if of_clips else PARTS)
    with _marked(step, meter, _places_of_clips(step) if of_clips else _places(step)):
        step.optimizer.zero_grad(set_to_none=True)  # as at the start of a step
        meter.start()
        batch = _part_of_batch(cfg, step, frames)
        clock = time.perf_counter()
        step([batch], cfg.optim.lr, list)  # waits for a value on the host
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - clock
    tensors = [*step.model.parameters(), *step.model.buffers()]
    for state in step.optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    if step.average is not None:
        tensors += step.average.averages.values()
    on_gpu = device.type == "cuda"
    return {
        "frames": frames,
        "peak": meter.peak(),
        "parts": meter.kept,
        "model": sum(t.nbytes for t in tensors),
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "precision": precision_name(step.precision),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _part_of_batch(cfg: "Config", step: GradientStep, frames: int) -> dict[str, Any]:
    """This rank's part of a random batch with clips of this length, the last frame padded.

    The clips of SHORT_CLIPS have no padding.
    """
    if cfg.data.clips in SHORT_CLIPS:
        step.cfg = copy.deepcopy(cfg)
        step.cfg.data.tuple_frames = frames
        return _whole_batch(step, cfg.data.batch_size)
    split = step.split
    if split is None:
        return random_batch(cfg, frames, features=step.features)
    frames //= split.parts
    last = split.part == split.parts - 1
    batch = random_batch(cfg, frames, features=step.features, padded=last)
    return batch | {"steps": batch["steps"] + split.part * frames}


def _whole_batch(step: GradientStep, items: int) -> dict[str, Any]:
    """The step's random batch of so many items; smaller ones are freed before the next is made."""
    examples = step.examples(items)
    batch = next(examples)
    while len(batch["ids"]) < items:
        del batch
        batch = next(examples)
    return batch


def _places(step: GradientStep) -> list[tuple[Any, str, str]]:
    """The methods of a `PairStep` and its model, and the parts whose memory they add."""
    model = step.model
    return [
        (model, "_per_frame", "layer4"),
        (model.backbone, "frozen_part", "frozen"),
        (model, "encode", "transformer"),
        (model, "project", "transformer"),
        (step, "objective", "loss"),
    ]


def _places_of_clips(step: GradientStep) -> list[tuple[Any, str, str]]:
    """The same for a step on the clips of SHORT_CLIPS."""
    encoder = getattr(step.model, "encoder", step.model)
    places = [
        (encoder, "_per_frame", "layer4"),
        (encoder.backbone, "frozen_part", "frozen"),
        (step, "module", "loss"),
    ]
    return [*places, (step, "_keys", "keys")] if hasattr(step, "_keys") else places


@contextmanager
def _marked(step: GradientStep, meter: Meter, places: list[tuple[Any, str, str]]) -> Iterator[None]:
    """Context in which the methods at ``places`` report when they run."""
    own = [vars(owner).get(name) for owner, name, _ in places]  # None: a method of the class
    try:
        for owner, name, part in places:
            call = _Marked(getattr(owner, name), meter, part, last=part == "loss")
            setattr(owner, name, call)
        yield
    finally:
        for (owner, name, _), before in zip(places, own, strict=True):
            delattr(owner, name) if before is None else setattr(owner, name, before)


def main() -> None:
    from training.recipe.load import load_config

    distributed.start()
    request = distributed.run_on_main(lambda: json.load(sys.stdin))
    cfg = load_config(request["recipe"], [*request["overrides"]])
    measured = distributed.gather_objects(measure(cfg))
    if distributed.is_main():
        print(json.dumps(max(measured, key=lambda one: one["peak"])))
    if distributed.world_size() > 1:
        distributed.leave(0)


if __name__ == "__main__":
    main()
