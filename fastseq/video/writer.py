"""Writing H.264 files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from fastseq.video._av import VideoError, require_av


def write_video(
    path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float, *, crf: int = 20
) -> None:
    """Write frames to an H.264 mp4 file (yuv420p), atomically: never a half-written file.

    The same frames give the same bytes.

    Args:
        frames: uint8 arrays or tensors (H, W, 3), RGB, all of one size. An odd side is padded by
            repeating its last row or column: yuv420p has no odd sizes.
        fps: frames per second.
        crf: x264's constant rate factor, 0 (lossless) to 51; smaller is better and larger on disk.
    Raises:
        ValueError: no frames, or a frame of another shape or dtype.
        VideoError: this PyAV has no H.264 encoder, or the file cannot be written.
    """
    av = require_av()
    target = Path(path)
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream, shape = None, None
            for number, frame in enumerate(frames):
                pixels = np.asarray(frame)
                if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                    raise ValueError(
                        f"frame {number} must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}"
                    )
                if stream is None:
                    shape = pixels.shape
                    stream = container.add_stream(
                        "libx264", rate=Fraction(fps).limit_denominator(100_000)
                    )
                    stream.height = shape[0] + shape[0] % 2
                    stream.width = shape[1] + shape[1] % 2
                    stream.pix_fmt = "yuv420p"
                    # mbtree makes x264's output differ from run to run on small pictures.
                    stream.options = {
                        "preset": "veryfast",
                        "crf": str(crf),
                        "x264-params": "mbtree=0",
                    }
                elif pixels.shape != shape:
                    raise ValueError(f"frame {number} is {pixels.shape}, the first was {shape}")
                pad = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
                pixels = np.ascontiguousarray(np.pad(pixels, pad, mode="edge"))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if stream is None:
                raise ValueError("no frames to write")
            container.mux(stream.encode(None))
        os.replace(partial, target)
    except av.codec.codec.UnknownCodecError as error:
        raise VideoError(str(target), "this build of PyAV has no H.264 encoder") from error
    except av.error.FFmpegError as error:
        raise VideoError(str(target), f"cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
