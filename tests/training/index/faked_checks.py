"""A fake of the check of a file, labels, and what else the tests of the index share.

The files are empty and their check is faked, so that hundreds of them take no time.
"""

import dataclasses
import json
import os
import threading

import numpy as np
import pytest

from fastseq.video import VideoInfo
from training.data import build
from training.data.files import Found
from training.data.index import (
    StaleIndex,
    load_index,
)

PARTIAL = ".fastseq_index.partial"
IDS = ["a.mp4", "b.mp4", "deep/c.mp4", "deep/er/d.mp4", "e.mp4", "z/f.mp4"]


class Checks:
    """A fake of `fastseq.video.probe`: calls, and facts of some files other than the usual ones."""

    def __init__(self):
        self.calls: list[tuple[str, bool]] = []
        self.facts: dict[str, dict] = {}
        self.times: dict[str, np.ndarray] = {}
        self.lock = threading.Lock()

    def __call__(self, path, *, decode=False, time_limit=None, fps=None):
        name = os.path.basename(path)
        with self.lock:
            self.calls.append((name, decode))
        facts = self.facts.get(name, {})
        if isinstance(facts, BaseException):
            raise facts
        info = VideoInfo(path, 40, 64, 48, 0, fps or 20.0, "h264")
        if name in self.times:
            info = dataclasses.replace(info, decoded_at=self.times[name])
        return dataclasses.replace(info, **facts)

    def made(self):
        """Names of the files checked since the last call."""
        names, self.calls = sorted(name for name, _ in self.calls), []
        return names


def write_labels(folder, videos, **others):
    classes = {} if "class_sets" in others else {"classes": {"x": ["r", "s", "t"], "y": ["u", "v"]}}
    (folder / "labels.json").write_text(json.dumps({**classes, "videos": videos, **others}))


def stale(folder):
    with pytest.raises(StaleIndex) as caught:
        load_index(folder)
    return str(caught.value)


def found_as(monkeypatch, entries=None, **places):
    """Make `find_videos` find these videos at these places, with entries of labels.json."""

    def find_videos(folder, include=(), *, pictures=None, progress=False):
        others = {name: place for name, place in places.items() if place != name}
        in_folders = [name for name, place in places.items() if "#" not in place]
        return Found(
            sorted(places),
            {},
            [],
            [],
            [],
            places=others,
            pictures=in_folders,
            entries=entries or {},
        )

    monkeypatch.setattr(build, "find_videos", find_videos)
