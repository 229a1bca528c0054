import dataclasses
import io
import json
import os
import runpy
import subprocess
import sys
import time
import types

import numpy as np
import pytest

av = pytest.importorskip("av")

from video.counter_video import encode, read_counter  # noqa: E402

import fastseq.video  # noqa: E402
from fastseq.video import read_frames, write_video  # noqa: E402
from fastseq.video.timeline import Deadline  # noqa: E402
from training.data.index import INDEX_NAME, load_index  # noqa: E402
from training.data.summary import no_test_videos  # noqa: E402
from training.prepare import main  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        levels = np.arange(25, dtype=np.uint8) * 8
        write_video(tmp_path / f"{name}.mp4", [np.full((32, 32, 3), x) for x in levels], 25)
    return tmp_path


def test_val_videos_can_be_scored_where_no_test_videos_are(folder, capsys):
    labels = {"a.mp4": {"split": "val"}}
    (folder / "labels.json").write_text(json.dumps({"videos": labels}))
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.endswith(
        "no test videos, but 1 val video: to score these, train with data.test_split=val, or add "
        "--split val to training.evaluate\n"
    )


def test_a_folder_that_cannot_be_looked_into_is_named(folder, capsys, monkeypatch):
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "closed":  # root may read every folder
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main([str(folder)]) == 0
    assert "not looked into: closed: Permission denied\n" in capsys.readouterr().out


def test_a_folder_with_bad_files(folder, capsys):
    data = (folder / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mp4").write_text("hello")
    (folder / "zero.mov").write_bytes(b"")
    os.mkfifo(folder / "pipe.mp4")  # opening it would wait for ever
    (folder / "notes.txt").write_text("-")
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2 videos, 50 frames, 0.00 hours" in out
    assert "left out: 3 files" in out
    assert "FFmpeg cannot open it) (2): cut.mp4, text.mp4" in out
    assert "the file is empty (0 bytes) (1): zero.mov" in out
    assert "ignored: 1 .txt (notes.txt), 1 not a regular file (pipe.mp4)\n" in out
    index = load_index(folder)
    assert [video.id for video in index.videos] == ["a.mp4", "b.mp4"]
    assert sorted(entry["path"] for entry in index.bad) == ["cut.mp4", "text.mp4", "zero.mov"]
    assert not list(folder.glob("*.part"))


def test_names_in_another_encoding_and_broken_links(folder, monkeypatch):
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"")
    (folder / "annexed.mp4").symlink_to("nowhere")
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as in most locales: strict
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(sys, "argv", ["prepare", str(folder)])
    monkeypatch.delitem(sys.modules, "training.prepare")
    with pytest.raises(SystemExit) as ended:  # as with python -m
        runpy.run_module("training.prepare", run_name="__main__")
    assert ended.value.code == 0
    said.flush()
    out = said.buffer.getvalue().decode()
    assert r"the file is empty (0 bytes) (1): caf\udce9.mp4" in out
    assert "ignored: 1 broken link (annexed.mp4)\n" in out


def test_verify_finds_damage_that_packets_do_not_show(folder, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), dtype=np.uint8)
    write_video(folder / "b.mp4", noise, 25)
    data = bytearray((folder / "b.mp4").read_bytes())
    middle = data.index(b"mdat") + len(data) // 2  # far from the headers
    data[middle : middle + 2000] = b"\xff" * 2000
    (folder / "b.mp4").write_bytes(bytes(data))
    assert main([str(folder)]) == 0
    assert "2 videos, 50 frames" in capsys.readouterr().out
    assert main([str(folder), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "used in part: 1 damaged video\n" in out
    _, damaged = load_index(folder).videos
    assert 0 < damaged.frames < 25
    assert damaged.note in out


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        tone = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
        container.mux(stream.encode(None))


def test_every_kind_of_file_is_used_or_named_with_its_reason(tmp_path, capsys):
    hevc = {"x265-params": "log-level=none:pools=none"}
    encode(tmp_path / "one_frame.mp4", 1)
    encode(tmp_path / "odd.mkv", 7, pix_fmt="yuv444p", size=(65, 49))
    encode(tmp_path / "ten_bit.mkv", 8, codec="libx265", pix_fmt="yuv420p10le", options=hevc)
    encode(tmp_path / "sound_first.mp4", 9, audio_first=True)
    faststart = {"movflags": "faststart"}
    data = encode(tmp_path / "cut.mp4", 60, container_options=faststart).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 8 // 10])
    data = encode(tmp_path / "no_index.mp4", 60).read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(data[: len(data) // 2])
    data = encode(tmp_path / "corrupt.mp4", 60).read_bytes()
    (tmp_path / "corrupt.mp4").write_bytes(np.random.default_rng(0).bytes(len(data)))
    sound_only(tmp_path / "sound.mp4")
    (tmp_path / "zero.mp4").write_bytes(b"")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    index = load_index(tmp_path)
    found = {video.id: (video.frames, video.width, video.height) for video in index.videos}
    cut = found.pop("cut.mp4")
    assert 0 < cut[0] < 60
    assert found == {
        "odd.mkv": (7, 65, 49),
        "one_frame.mp4": (1, 64, 48),
        "sound_first.mp4": (9, 64, 48),
        "ten_bit.mkv": (8, 64, 48),
    }
    for video in index.videos:
        numbers = [read_counter(f) for f in read_frames(video.path, range(video.frames))]
        assert numbers == list(range(video.frames))
        assert ("breaks off" in video.note) == (video.id == "cut.mp4")
    no_video = "not a video file, or cut off before its index (FFmpeg cannot open it)"
    assert {entry["path"]: entry["reason"] for entry in index.bad} == {
        "corrupt.mp4": no_video,
        "no_index.mp4": no_video,
        "sound.mp4": "no video stream (contains audio)",
        "zero.mp4": "the file is empty (0 bytes)",
    }
    assert "used in part: 1 damaged video\n  the file breaks off" in out
    assert "left out: 4 files" in out
    for name in ("cut.mp4", "corrupt.mp4", "no_index.mp4", "sound.mp4", "zero.mp4"):
        assert name in out


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_file_without_end_is_given_up_at_the_limit(folder, suffix, capsys):
    """A terabyte of zeros after the first frames: reading on would take many minutes."""
    path = encode(folder / f"endless.{suffix}", 60)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
        file.truncate(1 << 40)  # sparse: takes no space
    start = time.monotonic()
    assert main([str(folder), "--time-limit", "2"]) == 0  # enough for the others on a busy machine
    assert time.monotonic() - start < 60
    assert f"took longer than the limit of 2 s (1): endless.{suffix}" in capsys.readouterr().out
    assert len(load_index(folder).videos) == 2


def test_a_slow_decode_is_given_up_at_the_limit(tmp_path, monkeypatch, capsys):
    encode(tmp_path / "slow.mp4", 400)
    check = Deadline.check

    def slowly(deadline):  # runs before each packet is decoded
        time.sleep(0.25)  # 100 s in all
        check(deadline)

    monkeypatch.setattr(Deadline, "check", slowly)
    start = time.monotonic()
    assert main([str(tmp_path), "--verify", "--time-limit", "0.5"]) == 1
    assert 0.5 < time.monotonic() - start < 50
    assert "took longer than the limit of 0.5 s (1): slow.mp4" in capsys.readouterr().out


def test_memory_and_files_stay_flat(folder, capsys):
    data = (folder / "a.mp4").read_bytes()
    for number in range(40):
        kept = len(data) if number % 2 else len(data) // 2
        (folder / f"{number}.mp4").write_bytes(data[:kept])
    sizes, handles = [], []
    for _ in range(5):
        for path in folder.glob("*.mp4"):
            os.utime(path)  # otherwise it is not checked again
        main([str(folder), "--verify"])
        with open("/proc/self/statm") as statm:
            sizes.append(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        handles.append(len(os.listdir("/proc/self/fd")))
    assert handles[-1] == handles[1]
    assert sizes[-1] - sizes[1] < 8 << 20


def test_labels(folder, capsys):
    good = {"classes": {"all": ["x", "y"]}, "videos": {"a.mp4": {"boundaries": [5]}}}
    (folder / "mine.json").write_text(json.dumps(good))
    assert main([str(folder), "--labels", str(folder / "mine.json")]) == 0
    assert "with phase labels: 1" in capsys.readouterr().out
    assert load_index(folder).videos[0].phases.tolist() == [0] * 5 + [1] * 20
    before = (folder / INDEX_NAME).read_bytes()
    good["videos"] = {"c.mp4": {"boundaries": [5]}, "a.mp4": {"boundaries": [5]}}
    (folder / "mine.json").write_text(json.dumps(good))
    assert main([str(folder), "--labels", str(folder / "mine.json")]) == 2
    assert "c.mp4: no such video in the folder" in capsys.readouterr().err
    assert (folder / INDEX_NAME).read_bytes() == before


def test_what_is_worth_knowing_is_in_the_summary_and_the_index(folder, capsys, monkeypatch):
    encode(folder / "fields.mp4", 3)
    changes = {
        "a.mp4": {"random_access": False, "remarks": ("two video streams, the first one taken",)},
        "b.mp4": {"mirrored": True},
        "fields.mp4": {"interlaced": True},
    }
    probe = fastseq.video.probe

    def changed(path, **options):
        return dataclasses.replace(probe(path, **options), **changes[os.path.basename(path)])

    monkeypatch.setattr(fastseq.video, "probe", changed)
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    for lines in (
        "slow to read: 1 video\n  decoding starts long before the requested frame; `python -m "
        f"training.prepare {folder} --transcode OUT` makes copies that decode fast (1): a.mp4\n",
        "remarks: 1 video\n  two video streams, the first one taken (1): a.mp4\n",
        "left out: 1 file\n  interlaced (two fields per frame), which training does not read: "
        "`python -m "
        f"training.prepare {folder} --transcode OUT` makes a progressive copy",
    ):
        assert lines in out
    a, b = load_index(folder).videos
    assert (a.random_access, a.remarks, a.mirrored) == (
        False,
        ("two video streams, the first one taken",),
        False,
    )
    assert (b.random_access, b.remarks, b.mirrored, b.gaps) == (True, (), True, ())
    for name in ("a.mp4", "b.mp4"):
        (folder / name).unlink()
    assert main([str(folder)]) == 1
    assert "all videos are damaged or interlaced" in capsys.readouterr().err


def test_time_limit(folder, capsys):
    assert main([str(folder), "--time-limit", "1e-9"]) == 1
    captured = capsys.readouterr()
    assert "took longer than the limit" in captured.out
    assert "no video can be used" in captured.err


def test_wrong_usage(folder, capsys):
    for arguments, message in [
        ([], "required: folder"),
        ([str(folder / "none")], "is not a folder"),
        ([str(folder), "--labels", str(folder / "none.json")], "is not a file"),
        ([str(folder), "--time-limit", "0"], "--time-limit must be positive, got 0"),
        ([str(folder), "--fps", "-5"], "--fps must be positive, got -5"),
        ([str(folder), "--shard-size", "5"], "--shard-size needs --shards OUT"),
        ([str(folder), "--shards", "out", "--shard-size", "inf"], "must be positive, got inf"),
        ([str(folder), "--verfy"], "unrecognized"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_ctrl_c(folder, monkeypatch, capsys):
    import training.data.index

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.data.index, "build_index", interrupted)
    assert main([str(folder)]) == 130
    said = "interrupted; finished checks and copies are kept; the same command continues\n"
    assert capsys.readouterr().err == said


def test_a_folder_without_a_usable_video_says_why(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no file has the extension of a video" in capsys.readouterr().err
    (tmp_path / "zero.mp4").write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    assert "all videos are damaged" in capsys.readouterr().err


@pytest.mark.process
def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['prepare', '--help']\n"
        "try: runpy.run_module('training.prepare', run_name='__main__')\n"
        "finally: print('HEAVY', [m for m in ('torch', 'av', 'numpy', 'tqdm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--verify" in out.stdout
    assert "HEAVY []" in out.stdout


def test_a_folder_without_test_videos_is_told_how_to_choose_them(folder, capsys):
    said = (
        "no test videos: training needs none, evaluation does, and the report shows training "
        "videos instead. Choose them"
    )
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{said} before training: write " in out
    assert f'"split": "test" for some videos in {folder / "labels.json"}, or set it in' in out
    assert f"`python -m training.view {folder}`" in out
    (folder / "labels.json").write_text('{"videos": {"a.mp4": {"split": "test"}}}')
    assert main([str(folder)]) == 0
    assert "no test videos" not in capsys.readouterr().out


def test_an_empty_folder_is_an_error_and_nothing_else_is_said_of_it(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert "written" not in out
    assert "no test videos" not in out
    assert "error: no video can be used" in error


def test_carried_labels_are_no_candidates_for_videos(folder, capsys):
    (folder / "labels.propagated.json").write_text("{}")
    assert main([str(folder), "--include", "*.json"]) == 0
    assert "labels.propagated" not in capsys.readouterr().out
    assert not load_index(folder).bad


def test_only_what_changed_is_checked_again(folder, capsys):
    assert main([str(folder)]) == 0
    assert "  checked: 2 new or changed, 0 unchanged\n" in capsys.readouterr().out
    os.utime(folder / "b.mp4", ns=(0, 0))
    encode(folder / "c.mp4", 5)
    assert main([str(folder)]) == 0
    assert "  checked: 2 new or changed, 1 unchanged\n" in capsys.readouterr().out
    assert main([str(folder), "--verify"]) == 0
    assert "  decoded now: 3, decoded before: 0\n" in capsys.readouterr().out
    assert main([str(folder), "--verify"]) == 0
    assert "  decoded now: 0, decoded before: 3\n" in capsys.readouterr().out
    assert main([str(folder)]) == 0
    assert "  checked: 0 new or changed, 3 unchanged\n" in capsys.readouterr().out


def test_splits_of_every_class_set(folder, capsys):
    sets = {"two": {"all": ["a", "b"]}, "three": {"all": ["a", "b", "c"]}}
    labels = {"two": {"boundaries": [5], "split": "test"}, "three": {"boundaries": [5, 9]}}
    content = {"class_sets": sets, "videos": {"a.mp4": {"labels": labels}}}
    (folder / "labels.json").write_text(json.dumps(content))
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "  splits of two: test 1, train 1\n  with phase labels of two: 1\n" in out
    assert "  splits of three: train 2\n  with phase labels of three: 1\n" in out


def test_all_names_are_listed_on_request(folder, capsys):
    names = [f"zero_{number:02d}.mp4" for number in range(12)]
    for name in names:
        (folder / name).write_bytes(b"")
        (folder / name).with_suffix(".txt").write_bytes(b"")
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"(12): {', '.join(names[:10])} and 2 more (--all lists them)\n" in out
    assert "ignored: 12 .txt (zero_00.txt, zero_01.txt, zero_02.txt, ...)\n" in out
    assert main([str(folder), "--all"]) == 0
    out = capsys.readouterr().out
    assert f"(12): {', '.join(names)}\n" in out
    assert "zero_11.txt)\n" in out


def test_shards_are_written_from_the_index_and_prepared(
    folder, tmp_path_factory, capsys, monkeypatch
):
    out = tmp_path_factory.mktemp("shards")
    asked = {}

    def write_shards(index, target, size_mb=500, progress=False):
        asked.update(ids=[video.id for video in index.videos], target=target, size=size_mb)
        (target / "c.mp4").write_bytes((folder / "a.mp4").read_bytes())
        return "shards: 1"

    module = types.SimpleNamespace(write_shards=write_shards)
    monkeypatch.setitem(sys.modules, "training.data.shards", module)
    assert main([str(folder), "--shards", str(out), "--shard-size", "7"]) == 0
    said = capsys.readouterr().out
    assert asked == {"ids": ["a.mp4", "b.mp4"], "target": out, "size": 7}
    assert [video.id for video in load_index(out).videos] == ["c.mp4"]
    assert "\nshards: 1\n" in said
    assert said.endswith(f"written: {out / INDEX_NAME}\n{no_test_videos(out, None)}\n")
    assert [video.id for video in load_index(folder).videos] == ["a.mp4", "b.mp4"]
