"""The DALI graph: encoded files in, augmented clips out. Needs DALI to be installed.

Per clip: choose frames, crop + resize + flip in one step, colour, blur, turn upright. All steps are
DALI operators on either device, except one: on the CPU torch crops and resizes, with the function
of the PyAV engine, which is several times faster there than `fn.resize`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from fastseq.video.augment import crop_resize
from fastseq.video.engines.dali_inputs import Inputs

# Inputs of the graph: (name, type, dimensions), per reading and for each of its clips.
_READING_INPUTS = (("encoded", types.UINT8, 1), ("frames", types.INT32, 1))
_CLIP_INPUTS = (
    ("order", types.INT32, 1),
    ("start", types.INT32, 1),
    ("end", types.INT32, 1),
    ("flips", types.FLOAT, 1),
    ("turned", types.BOOL, 0),
    ("changed", types.BOOL, 0),
    ("coloured", types.BOOL, 0),
    ("matrix", types.FLOAT, 2),
    ("pull", types.FLOAT, 2),
    ("shift", types.FLOAT, 1),
    ("blurred", types.BOOL, 0),
)
_CLIP_INPUTS_GPU = (*_CLIP_INPUTS, ("sigma", types.FLOAT, 0), ("window", types.INT32, 0))
_CLIP_INPUTS_CPU = (*_CLIP_INPUTS, ("kernel", types.FLOAT, 1))
# Frames that torch gathers and resizes at a time: few enough to stay in the cache.
_CHUNK = 8


def build(
    source: Callable[[], list[Inputs]],
    *,
    clips: int,
    size: int,
    batch_size: int,
    threads: int,
    prefetch: int,
    device_id: int | None,
    gpu_operators: bool,
) -> Any:
    """A pipeline whose outputs are, for each reading of a batch, the decoded shape, int64 (4,), and
    then each clip, uint8 (T, 3, size, size).

    Args:
        source: returns the next batch, an `Inputs` for each reading; StopIteration after the last.
        device_id: number of the GPU, or None for the CPU.
        gpu_operators: resize and blur with the operators for GPUs. On the CPU they are slower;
            tests use them to run these operators there.
    """
    gpu = device_id is not None
    per_clip = _CLIP_INPUTS_GPU if gpu_operators else _CLIP_INPUTS_CPU
    inputs = _READING_INPUTS + per_clip * clips
    names = [name for name, _, _ in per_clip]

    def batch() -> tuple[list[np.ndarray], ...]:
        rows = [
            [reading.encoded, reading.frames]
            + [np.asarray(clip[name]) for clip in reading.clips for name in names]
            for reading in source()
        ]
        return tuple(map(list, zip(*rows, strict=True)))

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def graph():
        encoded, frames, *drawn = fn.external_source(
            source=batch,
            num_outputs=len(inputs),
            batch=True,
            dtype=[dtype for _, dtype, _ in inputs],
            ndim=[ndim for _, _, ndim in inputs],
        )
        # pad_mode "none": a frame past the end raises an error; by default it would be black.
        video = fn.decoders.video(
            encoded, frames=frames, device="mixed" if gpu else "cpu", pad_mode="none"
        )
        outputs = [video.shape()]
        for clip in range(clips):
            draw = _named(names, drawn[clip * len(names) : (clip + 1) * len(names)])
            outputs.append(_clip(video, draw, size, gpu, gpu_operators))
        return tuple(outputs)

    pipeline = graph()
    pipeline.build()
    return pipeline


@do_not_convert
def _named(names: list[str], nodes: list[Any]) -> dict[str, Any]:
    return dict(zip(names, nodes, strict=True))


def _clip(video: Any, draw: dict[str, Any], size: int, gpu: bool, gpu_operators: bool) -> Any:
    if gpu_operators:
        clip = fn.sequence_rearrange(video, new_order=draw["order"])
        # A crop first: with fn.resize's region alone, pixels beyond its edges would contribute.
        clip = fn.slice(clip, start=draw["start"], end=draw["end"], axes=[1, 2])
        clip = fn.resize(
            clip,
            size=(size, size),
            roi_start=draw["flips"],
            roi_end=1.0 - draw["flips"],
            roi_relative=True,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
    else:
        clip = fn.python_function(
            video,
            draw["order"],
            draw["start"],
            draw["end"],
            draw["flips"],
            function=functools.partial(_crop_resize, size),
            output_layouts="FHWC",
        )
    if draw["changed"]:
        if draw["coloured"]:  # noqa: SIM108, DALI needs statements
            pixels = _colour(clip, draw, gpu)
        else:
            pixels = fn.cast(clip, dtype=types.FLOAT)
        if draw["blurred"]:
            pixels = _blur(math.clamp(pixels, 0.0, 255.0), draw, gpu_operators)
        clip = fn.cast(pixels, dtype=types.UINT8)  # clips and rounds
    # Both branches must return one layout: FCWH and FCHW could not be in one batch.
    if draw["turned"]:
        clip = fn.transpose(clip, perm=[0, 3, 2, 1], transpose_layout=False)
    else:
        clip = fn.transpose(clip, perm=[0, 3, 1, 2], transpose_layout=False)
    return clip


def _colour(clip: Any, draw: dict[str, Any], gpu: bool) -> Any:
    mean = fn.reductions.mean(clip, axes=[0, 1, 2])
    if gpu:
        mean = mean.cpu()  # three numbers: operators read their arguments from the CPU
    bias = fn.coord_transform(fn.reshape(mean, shape=[1, 3]), M=draw["pull"], T=draw["shift"])
    bias = fn.reshape(bias, shape=[3])
    return fn.coord_transform(clip, M=draw["matrix"], T=bias, dtype=types.FLOAT)


def _blur(pixels: Any, draw: dict[str, Any], gpu_operators: bool) -> Any:
    pixels = fn.reshape(pixels, layout="FHWC")
    if gpu_operators:
        return fn.gaussian_blur(pixels, sigma=draw["sigma"], window_size=draw["window"])
    # On the CPU several times faster than gaussian_blur.
    pixels = fn.filter(pixels, fn.reshape(draw["kernel"], shape=[-1, 1]))
    return fn.filter(pixels, fn.reshape(draw["kernel"], shape=[1, -1]))


@do_not_convert
def _crop_resize(
    size: int,
    video: np.ndarray,
    order: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    flips: np.ndarray,
) -> np.ndarray:
    """The step of the GPU operators above, on the CPU: (T, size, size, 3) from (F, H, W, 3)."""
    (top, left), (bottom, right) = start.tolist(), end.tolist()
    frames = torch.from_numpy(video)[:, top:bottom, left:right]
    all_places = torch.from_numpy(order.astype(np.int64))
    box = (0, 0, bottom - top, right - left)
    mirrored = [axis for axis in (1, 2) if flips[axis - 1]]
    out = torch.empty(len(order), size, size, 3, dtype=torch.uint8)
    for chunk, places in zip(out.split(_CHUNK), all_places.split(_CHUNK), strict=True):
        crop_resize(frames[places], box, chunk)
        if mirrored:
            chunk.copy_(chunk.flip(mirrored))
    return out.numpy()
