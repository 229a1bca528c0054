"""DALI decodes and augments, on the GPU or on the CPU."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch

from fastseq.video._av import VideoError
from fastseq.video.arguments import as_int, as_number, as_size
from fastseq.video.decode import INTERLACED
from fastseq.video.engines.dali_inputs import (
    File,
    Inputs,
    inputs_of,
    inspect,
    release,
)
from fastseq.video.pictures import is_pictures
from fastseq.video.reader import read_frames
from fastseq.video.readings import Reading, Source, shape_of, wanted_frames
from fastseq.video.source import file_of
from fastseq.video.timeline import VideoInfo

# FFmpeg's names. H.264 and HEVC left DALI's CPU build with version 2.1.1.
_CPU_CODECS = {"vp8", "libvpx", "vp9", "libvpx-vp9", "mjpeg"}
_CPU_CODECS_UNTIL_2_1_0 = {"h264", "hevc"}
_GPU_CODECS = _CPU_CODECS | _CPU_CODECS_UNTIL_2_1_0 | {"av1", "libdav1d"}
# Checked by file extension: DALI's FFmpeg opens neither FLV nor MPEG program streams (2.1.0, CPU).
_CLOSED = (".flv", ".mpg", ".mpeg", ".vob")
_PICTURES = {"mjpeg", "png", "webp"}
_MAX_READINGS = 4096  # costs nothing on the CPU: speed and memory are the same as with 256
_FIX = "`fastseq.video.transcode(source, target)` rewrites such files as H.264"
_NO_PICTURES = (
    "DALI reads no folders of pictures; the PyAV engine does, and "
    "`fastseq.video.transcode(folder, target)` makes an H.264 file of one (--transcode)"
)


def unsupported(info: VideoInfo, device: str, version: str) -> str | None:
    """Why DALI does not read exactly the frames of a video, with the fix; None if it does.

    Args:
        info: `VideoInfo`, or anything with its `path`, `codec`, `note` and `random_access`.
        device: "cpu" or "gpu".
        version: version of DALI. Versions after 2.1.0 decode no H.264 and no HEVC on the CPU.
    """
    if info.codec in _PICTURES and is_pictures(info.path):
        return _NO_PICTURES
    if info.note:
        return f"the file is damaged ({info.note}); the PyAV engine reads its sound frames"
    if getattr(info, "interlaced", False):
        return INTERLACED
    if not getattr(info, "random_access", True):
        return f"packets are falsely marked as key frames, and DALI relies on the marks; {_FIX}"
    # The id, where there is one, has the extension of a member of a tar.
    if any(name.lower().endswith(_CLOSED) for name in (info.path, getattr(info, "id", ""))):
        return f"DALI opens no {', '.join(_CLOSED)} files; the PyAV engine reads them"
    if device == "gpu":
        if info.codec not in _GPU_CODECS:
            return f"DALI's GPU decoder does not support the codec {info.codec!r}; {_FIX}"
        return None
    if info.codec in _CPU_CODECS:
        return None
    before = release(version) <= (2, 1, 0)
    if info.codec not in _CPU_CODECS_UNTIL_2_1_0:
        fix = _FIX if before else "the PyAV engine reads it"
        return f"DALI does not decode the codec {info.codec!r} on the CPU; {fix}"
    if not before:
        return (
            f"DALI {version} does not decode {info.codec!r} on the CPU; 2.1.0 was the last that "
            'did (pip install "nvidia-dali-cuda130==2.1.0"); the PyAV engine reads it'
        )
    return None


def why_no_gpu_decoder() -> str | None:
    """Why DALI cannot decode on this machine's GPU, with the fix; None if it can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        return (
            f"the GPU's video decoder, libnvcuvid, does not load ({error}): it is part of NVIDIA's "
            "driver; containers need the driver capability `video` "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
    return None


class DaliEngine:
    """Reads and augments whole batches with NVIDIA DALI, some batches ahead.

    Each file is decoded once for all its clips, and only the frames that a clip needs, at full
    size. Copy hour-long or large videos with `fastseq.video.transcode` first.

    Frames, crops and flips equal those of the PyAV engine. Pixels differ, since the conversions to
    RGB do: by 0.5 to 1.2 grey levels on average, 1.1 over 28 real clips of 4:2:0 as 224 x 224.
    PyAV's are that much darker than exact arithmetic, and DALI's are 0.3 to 0.7 off. Without chroma
    subsampling they agree to one level. DALI itself decodes files tagged as Rec. 709 as Rec. 601
    (5 to 10 grey levels off on average; PyAV is right), and until 2.3.0 some full-range files as
    limited range; the colour step here undoes both.

    Args:
        size: side of the output in pixels.
        device: "cpu", or "gpu" to decode and augment on a GPU.
        device_id: number of the GPU.
        threads: number of DALI's threads, default one per core that this process may use.
        prefetch: number of batches prepared ahead.
        time_limit: seconds for the first look into a file; beyond it the file counts as unreadable.
    Raises:
        ImportError: DALI or PyAV is not installed.
        RuntimeError: device="gpu" where DALI cannot decode on a GPU; states why and what to do.
        ValueError: an option out of its range.

    Example:
        >>> import numpy as np
        >>> from fastseq.video.augment import ClipDraw
        >>> from fastseq.video.readings import Clip, Reading
        >>> draw = ClipDraw(0, 40, 240, 240, flip=True, colour=(), blur_sigma=0.0)
        >>> clip = Clip(np.array([0, 8, 16]), draw)
        >>> readings = [Reading("swing.mp4", 360, 640, side=240, clips=(clip,))]
        >>> engine = DaliEngine(224, threads=2)  # doctest: +SKIP
        >>> for frames in engine.batches(lambda k: readings, 0, 10):  # doctest: +SKIP
        ...     frames.shape
        torch.Size([1, 1, 3, 3, 224, 224])
        >>> engine.close()  # doctest: +SKIP
    """

    def __init__(
        self,
        size: int,
        *,
        device: str = "cpu",
        device_id: int = 0,
        threads: int | None = None,
        prefetch: int = 2,
        time_limit: float = 60.0,
    ):
        if device not in ("cpu", "gpu"):
            raise ValueError(f"device must be 'cpu' or 'gpu', got {device!r}")
        size, prefetch = as_size(size), as_int("prefetch", prefetch, 1)
        threads = None if threads is None else as_int("threads", threads, 1)
        device_id = as_int("device_id", device_id, 0)
        time_limit = as_number("time_limit", time_limit)
        self._version = _dali_version()
        if device == "gpu" and (reason := why_no_gpu_decoder()):
            raise RuntimeError(f"DALI cannot decode on the GPU: {reason}; or use the CPU or PyAV")
        self.name = f"dali-{device}"
        self.size, self.device, self.prefetch = size, device, prefetch
        self.threads = threads or len(os.sched_getaffinity(0))
        self.time_limit = time_limit
        self._device_id = device_id if device == "gpu" else None
        self._gpu_operators = device == "gpu"
        self._files: dict[str, tuple[tuple[int, int], File]] = {}
        self._loader: ThreadPoolExecutor | None = None
        self._runs: set[_Run] = set()

    def batches(self, source: Source, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield batches start to stop - 1, see `Engine.batches`.

        On the GPU the tensors are CUDA tensors, ready on torch's current stream.

        Raises:
            VideoError: a file that cannot be read as requested, or not exactly by DALI.
            RuntimeError: DALI fails on a batch that PyAV reads.
        """
        if start >= stop:
            return
        if self._loader is None:
            self._loader = ThreadPoolExecutor(1, thread_name_prefix="fastseq-dali")
        run = _Run(self, self._loader, source, start, stop)
        self._runs.add(run)
        try:
            for _ in range(start, stop):
                yield run.next()
        finally:
            self._runs.discard(run)
            run.close()

    def close(self) -> None:
        for run in list(self._runs):
            run.close()
        self._runs.clear()
        if self._loader is not None:
            self._loader.shutdown(cancel_futures=True)
            self._loader = None
        self._files.clear()

    def _load(self, source: Source, batch: int) -> tuple[Sequence[Reading], list[Inputs]]:
        """The readings of a batch and the graph's inputs for each."""
        readings = source(batch)
        shape_of(readings, self.size)  # a batch that cannot form a tensor fails here
        return readings, [inputs_of(r, self._file(r.path), self.size) for r in readings]

    def _file(self, path: str) -> File:
        if is_pictures(path):
            raise VideoError(path, _NO_PICTURES)
        try:
            stat = os.stat(file_of(path))
        except OSError as error:
            raise VideoError(path, str(error.strerror)) from error
        stamp = (stat.st_mtime_ns, stat.st_size)  # a file may be rewritten
        known = self._files.get(path)
        if known is None or known[0] != stamp:
            file = inspect(path, self.device, self._version, self.time_limit)
            reason = unsupported(file.info, self.device, self._version)
            if reason:
                raise VideoError(path, reason)
            self._files[path] = known = (stamp, file)
        return known[1]


class _Run:
    """One pass over batches: a thread reads the files, the graph follows, `next` waits for it."""

    def __init__(
        self,
        engine: DaliEngine,
        loader: ThreadPoolExecutor,
        source: Source,
        start: int,
        stop: int,
    ):
        self.engine, self.loader, self.source = engine, loader, source
        self.todo = iter(range(start, stop))
        self.loads: deque[Future] = deque()  # being read
        # In the graph: the readings of each batch, and the shapes that must be decoded.
        self.fed: deque[tuple[Sequence[Reading], list[tuple[int, ...]]]] = deque()
        self.failure: Exception | None = None
        self.pipeline: Any = None
        self.copied: tuple[torch.cuda.Event, Any] | None = None
        self.closed = False
        for _ in range(engine.prefetch):
            self._load_next()

    def next(self) -> torch.Tensor:
        if self.closed:
            raise RuntimeError("the engine was closed while its batches were iterated over")
        if self.pipeline is None:
            self.pipeline = self._build(self.loads[0].result()[0])
        # Raised here and without DALI's error as the cause: its traceback would keep the pipeline
        # and its threads alive as long as the error.
        failure = None
        try:
            outputs = self.pipeline.run(self._stream())
        except StopIteration:
            failure = self.failure
        except RuntimeError as error:
            failure = _explained(
                str(error), chain(*(readings for readings, _ in self.fed)), self.engine.time_limit
            )
        if failure is not None:
            raise failure
        readings, expected = self.fed.popleft()
        shapes, *clips = outputs
        for reading, shape, wanted in zip(readings, shapes, expected, strict=True):
            if tuple(np.asarray(shape)) != wanted:
                raise VideoError(
                    reading.path,
                    f"DALI decodes {np.asarray(shape).tolist()} instead of {list(wanted)} frames, "
                    f"rows, columns and colours; {_FIX}",
                )
        return self._to_torch(clips, readings)

    def close(self) -> None:
        self.closed = True
        for load in self.loads:
            load.cancel()
        self.loads.clear()
        self._release_copied()
        self.pipeline = None  # the last reference: its threads end

    def _load_next(self) -> None:
        batch = next(self.todo, None)
        if batch is not None:
            self.loads.append(self.loader.submit(self.engine._load, self.source, batch))

    def _feed(self) -> list[Inputs]:
        """The next batch, when DALI requests it."""
        loaded: tuple[Sequence[Reading], list[Inputs]] | None = None
        try:
            if self.loads:
                loaded = self.loads.popleft().result()
        except Exception as error:  # raised by `next` after the batches before it
            self.failure = error
        if loaded is None:
            self.loads.clear()
            raise StopIteration
        readings, inputs = loaded
        self._load_next()
        self.fed.append((readings, [reading.shape for reading in inputs]))
        return inputs

    def _build(self, readings: Sequence[Reading]) -> Any:
        from fastseq.video.engines._dali_graph import build

        engine = self.engine
        return build(
            self._feed,
            clips=len(readings[0].clips),
            size=engine.size,
            # An upper bound: a run may start with the smaller batch that ends an epoch.
            batch_size=max(_MAX_READINGS, len(readings)),
            threads=engine.threads,
            prefetch=engine.prefetch,
            device_id=engine._device_id,
            gpu_operators=engine._gpu_operators,
        )

    def _stream(self) -> torch.cuda.Stream | None:
        device = self.engine._device_id
        return None if device is None else torch.cuda.current_stream(device)

    def _to_torch(self, outputs: list[Any], readings: Sequence[Reading]) -> torch.Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        engine, stream = self.engine, self._stream()
        device_id = engine._device_id
        device = torch.device("cpu") if device_id is None else torch.device("cuda", device_id)
        batch = torch.empty(shape_of(readings, engine.size), dtype=torch.uint8, device=device)
        for number, clips in enumerate(outputs):
            for reading in range(len(readings)):
                feed_ndarray(clips[reading], batch[reading, number], cuda_stream=stream)
        if stream is not None:
            # DALI's memory is kept until torch's stream has reached the copies.
            self._release_copied()
            self.copied = (stream.record_event(), outputs)
        return batch

    def _release_copied(self) -> None:
        if self.copied is not None:
            self.copied[0].synchronize()
            self.copied = None


def _dali_version() -> str:
    try:
        import nvidia.dali
    except ImportError as error:
        raise ImportError(
            'the DALI engines need nvidia-dali: pip install "fastseq[dali]"'
        ) from error
    return nvidia.dali.__version__


def _explained(text: str, readings: Iterable[Reading], time_limit: float) -> Exception:
    """The reason for a failure: DALI states neither the file nor the cause, but PyAV does."""
    paths = []
    for reading in readings:
        paths.append(reading.path)
        try:
            frames, _ = wanted_frames(reading)
            read_frames(reading.path, frames, short_side=16, time_limit=time_limit)
        except VideoError as error:
            return VideoError(error.path, error.reason)
    return RuntimeError(f"DALI fails on files that PyAV reads ({', '.join(paths)}): {text}")
