"""Preparing a folder: what is checked again, and what an interruption leaves.

The files are empty and their check is faked, so that hundreds of them take no time.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from faked_checks import IDS, PARTIAL, write_labels

from training.data import build, probes
from training.data.index import (
    INDEX_NAME,
    build_index,
    load_index,
)
from training.support.command import UserError


def test_only_new_and_changed_files_are_checked(folder, checks):
    index = build_index(folder)
    assert (index.checked, index.kept) == (6, 0)
    assert checks.made() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
    before = [dataclasses.asdict(video) for video in index.videos]
    (folder / "b.mp4").write_bytes(b"longer")
    os.utime(folder / "deep/c.mp4", ns=(0, 5))
    (folder / "deep/n.mp4").write_bytes(b"")
    (folder / "e.mp4").unlink()
    labels = json.loads((folder / "labels.json").read_text())
    del labels["videos"]["e.mp4"]
    (folder / "labels.json").write_text(json.dumps(labels))
    index = build_index(folder)
    assert checks.made() == ["b.mp4", "c.mp4", "n.mp4"]
    assert (index.checked, index.kept) == (3, 3)
    after = {video.id: dataclasses.asdict(video) for video in load_index(folder).videos}
    assert [*after] == ["a.mp4", "b.mp4", "deep/c.mp4", "deep/er/d.mp4", "deep/n.mp4", "z/f.mp4"]
    for video in (before[0], before[3], before[5]):
        np.testing.assert_equal(after[video["id"]], video)


def test_facts_that_are_kept_are_the_same(folder, checks):
    checks.times["a.mp4"] = np.linspace(0, 3, 40) ** 2
    checks.facts["b.mp4"] = {"gaps": ((3, 5),), "note": "damaged", "remarks": ("r",), "fps": 1 / 3}
    checks.facts["c.mp4"] = {"gaps": ((6, 9),), "note": "damaged"}  # beside its trim
    checks.facts["d.mp4"] = {"interlaced": True}
    checks.facts["e.mp4"] = ValueError("broken")
    first = build_index(folder)
    checks.made()
    write_labels(folder, {})
    second = build_index(folder)
    assert not checks.made()
    assert second.videos[2].gaps == ((6, 9),)
    assert second.videos[2].trim is None
    assert second.bad == first.bad
    assert [entry["path"] for entry in first.bad] == ["deep/er/d.mp4", "e.mp4"]
    for name in ("times", "gaps", "note", "remarks", "fps"):
        for one, two in zip(first.videos[:2], second.videos[:2], strict=True):
            np.testing.assert_equal(getattr(one, name), getattr(two, name))
    write_labels(folder, {"a.mp4": {"action": "y", "boundaries": [7]}})
    assert build_index(folder).videos[0].phases.tolist() == [0] * 7 + [1] * 33
    assert not checks.made()


def test_verify_decodes_only_what_was_not_decoded(folder, checks):
    checks.facts["a.mp4"] = ValueError("broken")
    build_index(folder)
    assert {decode for _, decode in checks.calls} == {False}
    checks.made()
    build_index(folder, verify=True)
    assert {decode for _, decode in checks.calls} == {True}
    assert len(checks.made()) == 6
    os.utime(folder / "b.mp4", ns=(0, 0))
    build_index(folder)
    assert checks.made() == ["b.mp4"]
    build_index(folder, verify=True)
    assert checks.made() == ["b.mp4"]


def test_settings_that_change_what_a_check_finds(folder, checks, monkeypatch):
    checks.facts["a.mp4"] = ValueError("too slow")
    build_index(folder, time_limit=5)
    checks.made()
    build_index(folder, time_limit=9)
    assert checks.made() == ["a.mp4"]  # the others could be read
    monkeypatch.setattr(build, "reader_version", lambda: "another")
    build_index(folder, time_limit=9)
    assert len(checks.made()) == 6


def test_an_index_that_cannot_be_read_is_made_again(folder, checks):
    for content in (b"", b"SQLite format 3\0", b"[]"):
        (folder / INDEX_NAME).write_bytes(content)
        build_index(folder)
        assert len(checks.made()) == 6
        assert len(load_index(folder).videos) == 6


def test_an_interrupted_check_continues(folder, checks, monkeypatch):
    build_index(folder)
    for name in IDS:
        os.utime(folder / name, ns=(0, 0))
    checks.made()
    before = (folder / INDEX_NAME).read_bytes()
    checks.facts["d.mp4"] = KeyboardInterrupt()
    monkeypatch.setattr(build, "in_threads", lambda look, names, *_: [look(n) for n in names])
    with pytest.raises(KeyboardInterrupt):
        build_index(folder)
    assert checks.made() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert (folder / INDEX_NAME).read_bytes() == before
    with open(folder / PARTIAL, "ab") as file:  # a line that a killed process began
        file.write(b'["e.mp4", [0, 0, fal')
    checks.facts.clear()
    index = build_index(folder)
    assert checks.made() == ["d.mp4", "e.mp4", "f.mp4"]
    assert (index.checked, index.kept) == (3, 3)
    assert not (folder / PARTIAL).exists()


def test_a_line_after_one_that_was_cut_off_is_whole(tmp_path):
    checked = probes.Checked(probes.Probe(frames=3), (1, 2), False, None, 60.0, "r")
    (tmp_path / "journal").write_bytes(b'["a", [1, 2')
    journal = probes.Journal(tmp_path / "journal")
    with journal:
        journal.add("b", checked)
    assert journal.read() == {"b": checked}


def test_checks_are_kept_when_labels_do_not_fit(folder, checks):
    write_labels(folder, {"a.mp4": {"action": "x", "boundaries": [99]}})
    with pytest.raises(UserError, match="boundary 99 lies past"):
        build_index(folder)
    checks.made()
    write_labels(folder, {"a.mp4": {"action": "x", "boundaries": [9]}})
    build_index(folder)
    assert not checks.made()


def test_a_full_disk_leaves_the_old_index(folder, checks):
    build_index(folder)
    before = (folder / INDEX_NAME).read_bytes()
    write_labels(folder, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=f"{INDEX_NAME} cannot be written: "):
            build_index(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / INDEX_NAME).read_bytes() == before
    assert not list(folder.glob(".*.part"))


SLOWLY = """
import sys, time
from pathlib import Path
from unittest import mock

from fastseq.video import VideoInfo
from training.data import probes
from training.data.index import build_index

probes.Journal._SECONDS = 0.05

def probe(path, **options):
    time.sleep(0.02)
    print(Path(path).name, flush=True)
    return VideoInfo(path, 40, 64, 48, 0, 20.0, "h264")

with mock.patch("fastseq.video.probe", probe):
    build_index(sys.argv[1])
"""


def start(folder):
    command = [sys.executable, "-c", SLOWLY, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_a_killed_check_continues(tmp_path, checks):
    for number in range(200):
        (tmp_path / f"{number:03d}.mp4").write_bytes(b"")
    process = start(tmp_path)
    for _ in range(60):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / INDEX_NAME).exists()
    index = build_index(tmp_path)
    assert index.checked == len(checks.made())
    assert index.kept >= 20
    assert len(load_index(tmp_path).videos) == 200


@pytest.mark.process
def test_two_checks_at_the_same_time(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:03d}.mp4").write_bytes(b"")
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert len(load_index(tmp_path).videos) == 60
    assert [path.name for path in tmp_path.glob(".*")] == []
