"""Writing H.264 files."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastseq.video._av import VideoError, require_av
from fastseq.video.arguments import as_int, as_number, as_path


def write_video(
    path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float, *, crf: int = 20
) -> None:
    """Write frames to an H.264 mp4 file (yuv420p), atomically: never a half-written file.

    The same frames yield the same bytes, on machines with any number of cores.

    Args:
        frames: uint8 arrays or tensors (H, W, 3), RGB, all of one size. An odd side is padded by
            repeating its last row or column: yuv420p has no odd sizes.
        fps: frames per second.
        crf: x264's constant rate factor, 0 (lossless) to 51; smaller is better and larger on disk.
    Raises:
        TypeError: an argument of another type.
        ValueError: no frames, or a frame of another shape or dtype.
        VideoError: this PyAV has no H.264 encoder, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from fastseq.video import write_video
        >>> path = f"{tempfile.mkdtemp()}/grey.mp4"
        >>> write_video(path, [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(20)], fps=25)
    """
    av = require_av()
    path, fps, crf = as_path(path), as_number("fps", fps), as_int("crf", crf, 0)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive and finite, got {fps}")
    if crf > 51:
        raise ValueError(f"crf must be at most 51, got {crf}")
    if not isinstance(frames, Iterable) or isinstance(frames, (str, bytes)):
        raise TypeError(
            f"frames must be arrays or tensors (H, W, 3), one by one, got {type(frames).__name__}"
        )
    shape = None
    # mbtree makes x264's output differ from run to run on small pictures.
    options = {"preset": "veryfast", "crf": str(crf), "x264-params": "mbtree=0"}
    with H264File(path, fps, options) as file:
        for number, frame in enumerate(frames):
            pixels = np.asarray(frame)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise ValueError(
                    f"frame {number} must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}"
                )
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(f"frame {number} is {pixels.shape}, the first was {shape}")
            pad = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
            pixels = np.ascontiguousarray(np.pad(pixels, pad, mode="edge"))
            file.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        if shape is None:
            raise ValueError("no frames to write")


class H264File:
    """An mp4 file with one H.264 stream (yuv420p), frame after frame at a constant rate.

    Use it in a `with` block. The frames go to a hidden file beside `path`, which replaces `path`
    when the block ends without an error and is removed otherwise. Its name includes the number of
    the writing process, so that files of killed processes can be recognised.

    Args:
        options: options of the encoder, by FFmpeg's names.
        comment: text for the file's metadata.
        check: called with the finished hidden file; an error that it raises keeps `path` unchanged.
    Raises:
        VideoError: this PyAV has no H.264 encoder, or the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float,
        options: Mapping[str, str],
        *,
        comment: str = "",
        check: Callable[[Path], None] | None = None,
    ):
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.rate = Fraction(fps).limit_denominator(100_000)
        self.options, self.comment, self.check = options, comment, check
        self.count = 0

    def __enter__(self) -> H264File:
        with contextlib.ExitStack() as undo, self._reported():
            undo.callback(self.partial.unlink, missing_ok=True)
            self.container = undo.enter_context(
                # "file:", otherwise FFmpeg reads "take:1.mp4" as a protocol
                require_av().open(f"file:{self.partial}", "w", format="mp4")
            )
            self.stream = self.container.add_stream(
                "libx264", rate=self.rate, options=dict(self.options)
            )
            self.stream.pix_fmt = "yuv420p"
            # The number of threads changes x264's output. Callers write several files at once.
            self.stream.codec_context.thread_count = 1
            if self.comment:
                self.container.metadata["comment"] = self.comment
            undo.pop_all()
        return self

    def add(self, frame: Any) -> None:
        """Append an `av.VideoFrame` of even sizes; the first one fixes size and colours."""
        if self.count == 0:
            self.stream.width, self.stream.height = frame.width, frame.height
            if frame.format.name == "yuv420p":  # any other format is converted here
                codec = self.stream.codec_context
                codec.colorspace, codec.color_range = frame.colorspace, frame.color_range
                codec.color_trc, codec.color_primaries = frame.color_trc, frame.color_primaries
        frame.pts, frame.time_base = self.count, 1 / self.rate
        frame.pict_type = 0  # otherwise x264 puts key frames where the decoded file had them
        with self._reported():
            self.container.mux(self.stream.encode(frame))
        self.count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(require_av().error.FFmpegError):
                    self.container.close()
                return
            with self._reported():
                with self.container:
                    self.container.mux(self.stream.encode(None))
                if self.check is not None:
                    self.check(self.partial)
                os.replace(self.partial, self.path)
        finally:
            with contextlib.suppress(OSError):  # the earlier error is the one to report
                self.partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        av = require_av()
        try:
            yield
        except av.codec.codec.UnknownCodecError as error:
            raise VideoError(str(self.path), "this build of PyAV has no H.264 encoder") from error
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(str(self.path), f"cannot be written: {error}") from error
