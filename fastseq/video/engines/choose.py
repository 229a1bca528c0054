"""Which engine reads a set of videos, and why."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastseq.video.arguments import as_int, as_size, as_videos
from fastseq.video.columns import column, is_lazy, special, values_of
from fastseq.video.engines.pyav import PyAVEngine
from fastseq.video.readings import Engine

ENGINES = ("auto", "dali-gpu", "dali-cpu", "pyav")
_DALI_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110")


def dali_version() -> str | None:
    """Version of the installed DALI, or None."""
    for package in _DALI_PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def choose_engine(
    videos: Sequence[Any],
    *,
    dali: str | None,
    gpu: str | None,
    cached: bool = False,
) -> tuple[str, str]:
    """(engine, reason) for "auto": a pure function.

    DALI on the GPU if it reads every video exactly, otherwise PyAV. On a CPU DALI's engine takes
    1.6 to 3.2 times as long (benchmarks/results), so it is used only when chosen by name.

    Args:
        videos: `fastseq.video.VideoInfo`, or anything with its attributes.
        dali: version of the installed DALI, None = not installed.
        gpu: None if DALI can decode on the GPU, otherwise the reason.
        cached: whether the frames are in memory already.
    """
    if cached:
        return "pyav", "frames are cached in memory, nothing is decoded"
    if dali is None:
        return "pyav", 'DALI is not installed (pip install "fastseq[dali]" decodes on GPUs)'
    if gpu is None:
        from fastseq.video.engines.dali import unsupported

        gpu = _refused(videos, "gpu", dali, unsupported)
        if gpu is None:
            return "dali-gpu", f"DALI {dali} decodes and augments on the GPU"
    return "pyav", f"the fastest on a CPU; not DALI on the GPU: {gpu}"


def _refused(videos: Sequence[Any], device: str, version: str, unsupported: Any) -> str | None:
    count, first = 0, ""
    for video, alike in _kinds(videos):
        if reason := unsupported(video, device, version):
            count += alike
            first = first or f"{video.id}: {reason}"
    return f"{count} of {len(videos)} videos, such as {first}" if count else None


def _kinds(videos: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """(video, number of videos like it): each of a list; of a lazy sequence one of each kind.

    Videos that are not `special` differ for an engine by their codec and extension alone.
    """
    if not is_lazy(videos):
        yield from ((video, 1) for video in videos)
        return
    common = ~column(videos, "special")
    kinds: dict[tuple[str, str], list[int]] = {}  # -> the first position, and the number
    values = values_of(videos, common, "codec", "id")
    for position, (codec, name) in zip(np.flatnonzero(common).tolist(), values, strict=True):
        kinds.setdefault((codec, os.path.splitext(name)[1].lower()), [position, 0])[1] += 1
    for position, count in kinds.values():
        yield videos[position], count
    yield from ((video, 1) for _, video in special(videos))


def open_engine(
    name: str,
    videos: Sequence[Any],
    size: int,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    cache: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Engine, str]:
    """The engine that reads `videos`, and why it was picked.

    Args:
        name: "dali-gpu", "dali-cpu" or "pyav", which never fall back; "auto": see `choose_engine`.
        size: side of the output in pixels.
        device: where training runs. "dali-gpu" decodes there; the other engines return batches in
            page-locked memory if it is a GPU.
        workers: number of processes (PyAV) or threads (DALI, 0 = one per core).
        cache: path -> frames that are in memory already (PyAV only).

    Raises:
        ValueError: an unknown name, or a video that the named engine cannot read.
        ImportError, RuntimeError: the named engine does not work on this machine; the message
            states why and what to do.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    size, workers = as_size(size), as_int("workers", workers, 0)
    videos = as_videos(videos, needed=("id", "path"))
    device = torch.device(device)
    dali, reason = dali_version(), "chosen by name"
    if name == "auto":
        name, reason = choose_engine(
            videos, dali=dali, gpu=_why_not_gpu(device, dali), cached=cache is not None
        )
    if name == "pyav":
        pin = device.type == "cuda"
        return PyAVEngine(size, workers=workers, pin_memory=pin, cache=cache), reason
    if cache is not None:
        raise ValueError(f"engine {name!r} cannot read from the cache in memory; use pyav")
    if dali is None:
        raise ImportError(f'engine {name!r} needs NVIDIA DALI: pip install "fastseq[dali]"')
    from fastseq.video.engines.dali import DaliEngine, unsupported

    where = name.removeprefix("dali-")
    if where == "gpu" and device.type != "cuda":
        raise RuntimeError(f"engine 'dali-gpu' needs a CUDA device, got {device}")
    engine = DaliEngine(size, device=where, device_id=device.index or 0, threads=workers or None)
    refused = _refused(videos, where, dali, unsupported)
    if refused:
        raise ValueError(f"engine {name!r} cannot read {refused}")
    return engine, reason


def _why_not_gpu(device: torch.device, dali: str | None) -> str | None:
    if device.type != "cuda":
        return f"training runs on {device.type}"
    if dali is None:
        return "DALI is not installed"
    from fastseq.video.engines.dali import why_no_gpu_decoder

    return why_no_gpu_decoder()
