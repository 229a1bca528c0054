"""A fake of the check of a file, and a folder of six files with labels."""

import pytest
from faked_checks import Checks, write_labels


@pytest.fixture
def checks(monkeypatch):
    made = Checks()
    monkeypatch.setattr("fastseq.video.probe", made)
    return made


@pytest.fixture
def folder(tmp_path):
    """Six files in nested folders; labels of four of them."""
    for name in ("a", "b", "deep/c", "deep/er/d", "e", "z/f"):
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    write_labels(
        tmp_path / "videos",
        {
            "a.mp4": {"action": "x", "split": "test", "view": "ego", "boundaries": [10, 30]},
            "b.mp4": {"action": "y", "phases": [-1] * 20 + [1] * 20, "remark": "to be checked"},
            "deep/c.mp4": {"trim": [4, 29], "crop": [1, 2, 30, 40], "split": "val"},
            "e.mp4": {"action": "x", "sync": {"group": "g", "offset": 3}, "view": "exo"},
        },
    )
    return tmp_path / "videos"
