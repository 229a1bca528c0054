"""python -m training.prepare FOLDER --transcode OUT"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from video.counter_video import encode, read_counter  # noqa: E402

from fastseq.video import read_frames, write_video  # noqa: E402
from training.data.index import build_index, load_index  # noqa: E402
from training.data.transcode import Settings, transcode_folder  # noqa: E402
from training.prepare import main  # noqa: E402

LABELS = {
    "classes": {"swing": ["up", "down"]},
    "videos": {
        "a.mp4": {"action": "swing", "boundaries": [5]},
        "deep/b.avi": {"action": "swing", "split": "test", "boundaries": [9]},
    },
    "origin": "Größe",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    encode(tmp_path / "in" / "a.mp4", 30, options={"crf": "18"})
    encode(tmp_path / "in" / "deep" / "b.avi", 20, codec="mjpeg", pix_fmt="yuvj420p")
    (tmp_path / "in" / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")
    return tmp_path / "in"


def files(folder: Path) -> dict[str, int]:
    """Every file, including hidden ones, with its modification time."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


COPY = ["a.mp4", "deep/b.avi.mp4", "fastseq_index.sqlite", "labels.json"]


def test_a_complete_folder(folder, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main([str(folder), "--transcode", str(out)]) == 0
    text = capsys.readouterr().out
    assert "copied: 2 videos, 50 frames, " in text
    assert f"{out}: 2 videos, 50 frames" in text
    assert sorted(files(out)) == COPY
    before, after = build_index(folder, verify=True), load_index(out)
    assert [video.id for video in after.videos] == ["a.mp4", "deep/b.avi.mp4"]
    for old, new in zip(before.videos, after.videos, strict=True):
        same = ("frames", "fps", "action", "split", "width", "height", "note")
        assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
        assert np.array_equal(old.phases, new.phases)
        assert [read_counter(f) for f in read_frames(new.path)] == list(range(old.frames))
    assert json.loads((out / "labels.json").read_text(encoding="utf-8"))["origin"] == "Größe"


def test_finished_copies_are_kept(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(folder), "--transcode", str(out)]
    assert main(arguments) == 0
    first = files(out)
    assert main(arguments) == 0
    assert "copied: 0 videos, 0 frames\ncopied before: 2 videos" in capsys.readouterr().out
    second = files(out)
    assert [name for name in COPY if first[name] != second[name]] == ["fastseq_index.sqlite"]

    os.utime(folder / "a.mp4")  # newer than its copy
    report = transcode_folder(folder, out)
    assert (report.written, report.kept) == (["a.mp4"], ["deep/b.avi.mp4"])
    report = transcode_folder(folder, out, Settings(crf=30))
    assert (len(report.written), report.frames) == (2, 50)
    data = (out / "a.mp4").read_bytes()
    (out / "a.mp4").write_bytes(data[: len(data) // 2])
    report = transcode_folder(folder, out, Settings(crf=30))
    assert report.written == ["a.mp4"]
    assert (out / "a.mp4").read_bytes() == data


def damage(folder: Path) -> dict[str, str]:
    """Files of every kind that cannot be copied, and the reasons."""
    index_first = {"movflags": "faststart"}
    whole = encode(folder / "cut.mp4", 60, container_options=index_first).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "a.mp4").read_bytes()
    (folder / "late_index.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mov").write_text("hello\n" * 300)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        tone = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        tone.sample_rate = 8000
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    write_video(folder / "hole.mp4", noise, 25)
    data = bytearray((folder / "hole.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    (folder / "hole.mp4").write_bytes(data)
    os.mkfifo(folder / "pipe.mp4")  # opening it would wait for ever
    return {
        "cut.mp4": "breaks off",
        "hole.mp4": "does not decode without errors",
        "late_index.mp4": "cut off before its index",
        "sound.mp4": "no video stream (contains audio)",
        "text.mov": "not a video file",
        "zero.mp4": "the file is empty (0 bytes)",
    }


def test_damaged_files_are_reported_and_left_out(folder, tmp_path, capsys):
    reasons = damage(folder)
    labels = LABELS | {"videos": LABELS["videos"] | {"cut.mp4": {"split": "test"}}}
    (folder / "labels.json").write_text(json.dumps(labels))
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(folder), "--transcode", str(out)]) == 0
    text = capsys.readouterr().out
    assert "copied: 2 videos" in text
    assert "not copied: 6 videos" in text
    assert sorted(files(out)) == COPY
    assert list(json.loads((out / "labels.json").read_text())["videos"]) == COPY[:2]
    report = transcode_folder(folder, out)
    assert [entry["path"] for entry in report.bad] == list(reasons)
    for entry in report.bad:
        assert reasons[entry["path"]] in entry["reason"]
        assert f"): {entry['path']}" in text or entry["path"] in text.split(entry["reason"])[1]


def test_a_copy_goes_when_its_video_becomes_damaged(folder, tmp_path, capsys):
    out = tmp_path / "out"
    transcode_folder(folder, out)
    (folder / "a.mp4").write_bytes(b"")
    assert main([str(folder), "--transcode", str(out)]) == 0
    assert sorted(files(out)) == COPY[1:]
    (folder / "deep" / "b.avi").write_bytes(b"")
    assert main([str(folder), "--transcode", str(out)]) == 1
    assert "no video can be used: all videos are damaged" in capsys.readouterr().err


def test_videos_that_are_no_copies_are_not_touched(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    mine = encode(out / "a.mp4", 3).read_bytes()
    encode(out / "other.mp4", 3)
    report = transcode_folder(folder, out)
    assert report.written == ["deep/b.avi.mp4"]
    assert report.strays == ["other.mp4"]
    assert "exists and is not a copy made here" in report.bad[0]["reason"]
    assert (out / "a.mp4").read_bytes() == mine


@pytest.mark.process
def test_what_a_killed_process_left_is_removed(folder, tmp_path):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (out / "deep" / f".b.avi.mp4.{ended.pid}.part").write_bytes(b"half")
    (out / f".a.mp4.{os.getppid()}.part").write_bytes(b"being written by somebody")
    (out / ".notes.part").write_bytes(b"whatever")
    transcode_folder(folder, out)
    left = [name for name in files(out) if name.endswith(".part")]
    assert sorted(left) == sorted([f".a.mp4.{os.getppid()}.part", ".notes.part"])


SLOW = """
import sys, time
from fastseq.video.writer import H264File
from training.prepare import main
add = H264File.add
def slow(self, frame):
    time.sleep(0.05)
    add(self, frame)
H264File.add = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.process
def test_ctrl_c_ends_it_within_a_frame(folder, tmp_path):
    content = encode(folder / "c0.mp4", 400).read_bytes()  # 20 seconds each
    for number in range(1, 4):
        (folder / f"c{number}.mp4").write_bytes(content)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(folder), "--transcode", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not ((out / "a.mp4").exists() and list(out.glob(".c*.part"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "frames/s" in errors  # the bar
    kept = "interrupted; finished checks and copies are kept; the same command continues\n"
    assert errors.endswith(kept)
    there = sorted(files(out))
    assert "a.mp4" in there
    assert set(there) <= set(COPY[:2])  # nothing unfinished: the command did not wait for it
    assert transcode_folder(folder, out).kept == there


def test_wrong_usage(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    for arguments, message in [
        (["--crf", "20"], "--crf needs --transcode OUT"),
        (["--keyframe-every", "8"], "--keyframe-every needs --transcode OUT"),
        (["--transcode", out, "--crf", "good"], "invalid int value"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main([str(folder), *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    for arguments, message in [
        (["--transcode", out, "--crf", "99"], "crf must be from 0 to 51, got 99"),
        (["--transcode", out, "--short-side", "255"], "even number from 2, got 255"),
        (["--transcode", str(folder)], "must be two folders, neither inside the other"),
        (["--transcode", str(folder / "out")], "must be two folders"),
        (["--transcode", str(tmp_path)], "must be two folders"),
    ]:
        assert main([str(folder), *arguments]) == 2
        assert message in capsys.readouterr().err
    encode(folder / "deep" / "b.avi.mp4", 3)
    assert main([str(folder), "--transcode", out]) == 2
    assert "deep/b.avi and deep/b.avi.mp4 would get the same name" in capsys.readouterr().err
    (folder / "deep" / "b.avi.mp4").unlink()
    (folder / "a.mp4").rename(folder / "a1.mp4")
    assert main([str(folder), "--transcode", out]) == 2
    assert "did you mean a1.mp4?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing was started


def test_memory_and_files_stay_flat(folder, tmp_path, monkeypatch):
    damage(folder)
    # Two threads on any machine: with eight, memory grows by 8 MB until each heap has settled.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    sizes = []
    for round_ in range(6):
        transcode_folder(folder, tmp_path / f"out{round_}")
        with open("/proc/self/statm") as statm:
            sizes.append(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        handles = len(os.listdir("/proc/self/fd"))
        if round_ == 1:
            before = handles
    assert handles == before
    assert sizes[-1] - sizes[1] < 16 << 20
