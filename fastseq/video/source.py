"""Opening a file at the video stream that players show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastseq.video._av import VideoError, require_av
from fastseq.video.timeline import Deadline, reason_of


@contextlib.contextmanager
def open_video(path: str, deadline: Deadline | None = None) -> Iterator[tuple[Any, Any]]:
    """(container, stream) of a file; the stream is that of `chosen_stream`."""
    av = require_av()
    name = path
    deadline = deadline or Deadline(path, None)
    try:
        if Path(path).is_file():
            if Path(path).stat().st_size == 0:
                raise VideoError(path, "the file is empty (0 bytes)")
            name = f"file:{path}"  # otherwise FFmpeg reads "take:1.mp4" as a protocol
        # Metadata in another encoding than UTF-8 must not prevent reading the frames.
        container = av.open(name, timeout=deadline.seconds, metadata_errors="replace")
    except av.error.ExitError as error:
        raise deadline.error() from error  # only happens with a time limit
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
            reason = "not a video file, or cut off before its index (FFmpeg cannot open it)"
        else:
            reason = reason_of(error)
        raise VideoError(path, reason) from error
    with container:
        stream, _ = chosen_stream(path, container)
        # One thread per file: where decoding stops in a damaged file must not depend on the number
        # of cores. Callers process several files at once instead.
        stream.codec_context.thread_count = 1
        yield container, stream


def chosen_stream(path: str, container: Any) -> tuple[Any, str]:
    """The video stream that players show, and a remark if there are several.

    FFmpeg's choice: the stream marked as default; among several, the one with the most frames, then
    the largest. Never cover pictures or thumbnails.
    """
    flags = require_av().stream.Disposition
    pictures = flags.attached_pic | flags.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(path, f"no video stream (contains {', '.join(kinds) or 'nothing'})")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise VideoError(path, "the video's codec is unknown to this FFmpeg")
    if len(streams) == 1:
        return known[0], ""
    best = container.streams.best("video")
    stream = next((s for s in known if best and s.index == best.index), known[0])
    marked = [stream for stream in known if stream.disposition & flags.default]
    alone = len(marked) == 1 and marked[0] is stream
    why = "the only one marked as default" if alone else "the one that FFmpeg prefers"
    codec = stream.codec_context
    return stream, (
        f"of {len(streams)} video streams number {stream.index} is read, {why} "
        f"({codec.name}, {codec.width} x {codec.height})"
    )
