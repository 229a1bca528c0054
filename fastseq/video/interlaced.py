"""Progressive pictures from interlaced video, one for each frame (two fields)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastseq.video._av import require_av


def deinterlaced(stream: Any, frames: Iterable[Any]) -> Iterator[Any]:
    """As many frames as come in; interlaced ones pass through FFmpeg's bwdif.

    A picture is computed from its frame and both neighbours, so the frames must come in order.
    Frames before the first interlaced one are not changed.
    """
    graph = before = None
    for number, frame in enumerate(frames):
        if graph is None and not frame.interlaced_frame:
            if before is not None:
                yield before
            before = frame
            continue
        if graph is None:
            graph = _graph(stream, frame)
            if before is not None:
                before.pts = number - 1
                graph.push(before)
        frame.pts = number  # the filter needs time stamps, and the file may lack them
        graph.push(frame)
        yield from _ready(graph)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph)
    elif before is not None:
        yield before


def _graph(stream: Any, frame: Any) -> Any:
    graph = require_av().filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format.name,
        time_base=stream.time_base,
    )
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _ready(graph: Any) -> Iterator[Any]:
    av = require_av()
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
