"""python -m training.labels: what it writes, keeps, refuses and counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trees

from fastseq.video import probe
from training.datasets.dataset import Clip, DataSet
from training.datasets.readers import READERS
from training.datasets.summary import summary
from training.datasets.write import write_data_set
from training.labels import main
from training.prepare import main as prepare
from training.support.command import UserError

ROOT = Path(__file__).parents[3]


def content(folder: Path) -> dict:
    return json.loads((folder / "labels.json").read_text())


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.mark.process
def test_help_is_fast_and_shows_the_layout():
    program = (
        "import sys, training.labels\n"
        "try: training.labels.main(['penn_action', '--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'numpy', 'scipy', 'numba'} & sys.modules.keys()\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SOURCE/frames/0001/000001.jpg" in done.stdout
    assert "--key-events" in done.stdout


@pytest.mark.parametrize("name", trees.BUILDERS)
def test_prepare_accepts_what_every_reader_writes(name, tmp_path, capsys):
    build, source = trees.BUILDERS[name]
    (tmp_path / "source").mkdir()
    build(tmp_path / "source")
    before = listing(tmp_path / "source")
    arguments = [name, str(tmp_path / "source" / source), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) in (0, 3)
    assert "nothing was written (--dry-run)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(arguments) in (0, 3)
    videos = content(tmp_path / "out")["videos"]
    assert f"videos: {len(videos)}\n" in capsys.readouterr().out
    assert listing(tmp_path / "source") == before
    assert prepare([str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"{len(videos)} videos" in out
    assert "left out" not in out
    assert name in READERS


@pytest.fixture
def data_set(tmp_path):
    """A video, a folder of pictures and pictures in memory."""
    trees.video(tmp_path / "source/one.mp4", 12)
    trees.write_pictures(tmp_path / "source/two", 6)
    pictures = [trees.jpeg(number) for number in range(5)]
    return DataSet(
        clips=[
            Clip("v/one.mp4", tmp_path / "source/one.mp4", {"split": "train", "phases": [0] * 12}),
            Clip("two", tmp_path / "source/two", {"split": "test"}, fps=10.0),
            Clip("three", None, {"split": "test"}, pictures=lambda: pictures, fps=5.0),
        ],
        classes={"all": ["a"]},
        missing={"four.mp4": "no such file"},
        remarks={"odd": [str(number) for number in range(12)]},
    )


def test_links_are_absolute_and_pictures_are_unchanged(data_set, tmp_path):
    out = tmp_path / "out"
    written = write_data_set(data_set, out)
    assert (written.made, written.kept, written.absent, written.status) == (3, 0, 1, 3)
    assert os.readlink(out / "v/one.mp4") == str(tmp_path / "source/one.mp4")
    assert os.readlink(out / "two") == str(tmp_path / "source/two")
    names = [f"{number:06}.jpg" for number in range(1, 6)]
    assert sorted(os.listdir(out / "three")) == names
    assert (out / "three/000003.jpg").read_bytes() == trees.jpeg(2)
    assert content(out) == {
        "classes": {"all": ["a"]},
        "videos": {
            "three": {"split": "test", "fps": 5.0},
            "two": {"split": "test", "fps": 10.0},
            "v/one.mp4": {"split": "train", "phases": [0] * 12},
        },
    }
    assert not [name for name in os.listdir(out) if name.startswith(".")]
    with pytest.raises(UserError, match="exists already; --overwrite replaces it"):
        write_data_set(data_set, out)
    assert write_data_set(data_set, out, overwrite=True).kept == 3


def test_the_summary_names_what_is_missing(data_set, tmp_path):
    written = write_data_set(data_set, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    lines = summary(data_set, written)
    assert "  splits: test 2, train 1" in lines
    assert "  with phase labels: 1" in lines
    assert "missing: no such file (1): four.mp4" in lines
    many = [Clip(f"{k}.mp4", None, {"action": f"a{k:02}"}) for k in range(21)]
    written = write_data_set(DataSet(many), tmp_path / "many", dry_run=True)
    assert "a08 1, a09 1 and 11 more (--all)" in summary(DataSet(many), written)[2]
    written = write_data_set(data_set, tmp_path / "out", dry_run=True)
    assert "remark: odd (12): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more (--all)" in lines
    assert "remark: odd (12): " + ", ".join(map(str, range(12))) in summary(
        data_set, written, every=True
    )


def test_names_that_collide(data_set, tmp_path):
    out = tmp_path / "out"
    one, two, _ = data_set.clips
    with pytest.raises(UserError, match=r"two videos would be v/one\.mp4 .*one\.mp4 and .*two"):
        write_data_set(DataSet([one, Clip("v/one.mp4", two.source, {})]), out)
    with pytest.raises(UserError, match=r"two/x\.mp4 would lie inside the folder of pictures two"):
        write_data_set(DataSet([two, Clip("two/x.mp4", one.source, {})]), out)
    with pytest.raises(UserError, match=r"'\.\./x' cannot be the name"):
        write_data_set(DataSet([Clip("../x", one.source, {})]), out)
    assert not out.exists()
    (out / "v").mkdir(parents=True)
    (out / "v/one.mp4").write_text("mine")
    with pytest.raises(UserError, match=r"has other files of the same name: v/one\.mp4"):
        write_data_set(data_set, out)
    assert [*out.iterdir()] == [out / "v"]
    assert (out / "v/one.mp4").read_text() == "mine"
    (out / "v/one.mp4").unlink()
    (out / "three").mkdir()
    (out / "three/000001.jpg").write_text("mine")
    with pytest.raises(UserError, match="three exists and has other pictures"):
        write_data_set(data_set, out)


def test_an_interrupted_call_is_continued(data_set, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = data_set.clips[2].pictures

    def interrupted():
        raise KeyboardInterrupt

    object.__setattr__(data_set.clips[2], "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_data_set(data_set, out)
    assert not (out / "labels.json").exists()
    assert (out / "v/one.mp4").exists()
    (out / ".three.999999999.pictures").mkdir()  # of a process that was killed
    object.__setattr__(data_set.clips[2], "pictures", real)
    written = write_data_set(data_set, out)
    assert (written.made, written.kept) == (1, 2)
    assert sorted(os.listdir(out)) == ["labels.json", "three", "two", "v"]


def test_labels_for_videos_that_are_there_already(data_set, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="none of the 3 annotated videos is in"):
        write_data_set(data_set, out, "none")
    trees.video(out / "v/one.webm.mkv", 3)
    (out / "v/one.mkv").write_bytes((out / "v/one.webm.mkv").read_bytes())
    trees.write_pictures(out / "two", 6)
    before = listing(out)
    written = write_data_set(data_set, out, "none")
    assert written.status == 3
    assert written.failed == {"three": f"no such video in {out}"}
    assert content(out)["videos"] == {
        "two": {"split": "test", "fps": 10.0},
        "v/one.mkv": {"split": "train", "phases": [0] * 12},
    }
    assert listing(out).items() >= before.items() - {str(out)}


def test_copies_have_frame_numbers_and_are_made_once(tmp_path):
    out = tmp_path / "out"
    trees.video(tmp_path / "a.mp4", 20)
    segments = {"unit": "seconds", "segments": [[0.2, 0.4, 0]]}
    pictures = [trees.jpeg(number, (64, 48)) for number in range(5)]

    def made(cut, side=16, fps=10.0):
        clips = [
            Clip("a", tmp_path / "a.mp4", segments, cut=cut),
            Clip("b.mp4", tmp_path / "a.mp4", {}),
            Clip("p", None, {"phases": [0] * 5}, pictures=lambda: pictures, fps=fps),
        ]
        data_set = DataSet(clips, {"all": ["x"]})
        return write_data_set(data_set, out, "transcode", overwrite=True, short_side=side)

    assert (made(None).made, made(None).kept) == (3, 3)
    assert content(out)["videos"] == {
        "a.mp4": {"segments": [[5, 10, 0]]},
        "b.mp4": {},
        "p.mp4": {"phases": [0] * 5},
    }
    copy = probe(out / "p.mp4")
    assert (copy.frames, copy.fps, min(copy.width, copy.height)) == (5, 10, 16)
    assert made((0.1, 0.7)).made == 1  # frames at 0.12 to 0.68 s: 3 to 17
    assert content(out)["videos"]["a.mp4"] == {"segments": [[5, 10, 0]]}  # at 0.32 to 0.48 s
    assert trees.numbers(out / "a.mp4") == [*range(3, 18)]
    assert made((0.1, 0.7), side=14).made == 3
    assert made((0.1, 0.7), side=14, fps=20.0).made == 1
    (out / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    with pytest.raises(UserError, match=r"a\.mp4 exists and is not a copy made here"):
        made(None)


def test_one_bad_video_does_not_stop_the_others(data_set, tmp_path, capsys):
    (tmp_path / "source/bad.mp4").write_text("no video")
    clips = [
        data_set.clips[0],
        Clip("bad.mp4", tmp_path / "source/bad.mp4", {}),
        Clip("late.mp4", data_set.clips[0].source, {}, cut=(5.0, 6.0)),
        Clip("short.mp4", data_set.clips[0].source, LATE, cut=(0.2, 3.0)),
    ]
    data_set = DataSet(clips, {"all": ["a"]})
    written = write_data_set(data_set, tmp_path / "out", "transcode")
    assert written.status == 3
    assert content(tmp_path / "out")["videos"].keys() == {"v/one.mp4"}
    assert written.failed.keys() == {"bad.mp4", "late.mp4", "short.mp4"}
    assert written.failed["late.mp4"].startswith("no frame from 5 to 6 s; the video has 12 frames")
    assert "it ends after 0.44 s, before the labels" in written.failed["short.mp4"]
    assert not (tmp_path / "out/bad.mp4").exists()
    alone = DataSet(clips[1:2], {})
    with pytest.raises(UserError, match=r"none of the 1 videos could be written; bad\.mp4"):
        write_data_set(alone, tmp_path / "other", "transcode")
    assert not (tmp_path / "other/labels.json").exists()


LATE = {"unit": "seconds", "segments": [[0.0, 2.0, 0]]}


def test_requests_that_are_refused(tmp_path, capsys):
    trees.build_penn_action(tmp_path / "source")
    source = str(tmp_path / "source")
    (tmp_path / "file").touch()
    (tmp_path / "done").mkdir()
    (tmp_path / "done/labels.json").touch()
    for arguments, message in (
        ([str(tmp_path / "gone"), "--out", "x"], "gone does not exist"),
        ([source], "--out FOLDER is needed"),
        ([source, "--out", f"{source}/out"], "lies in the data set"),
        ([source, "--out", source], "lies in the data set"),
        ([source, "--out", str(tmp_path / "file")], "is not a folder"),
        ([source, "--out", str(tmp_path / "done")], "--overwrite replaces it"),
        ([source, "--out", str(tmp_path / "x"), "--short-side", "7"], "must be an even number"),
    ):
        assert main(["penn_action", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
    assert not (tmp_path / "x").exists()
    done = str(tmp_path / "done")  # no data set either, which would take long to find out
    assert main(["penn_action", done, "--out", done, "--media", "none"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["penn_action", source, "--out", source, "--media", "none"]) == 0
    assert "frames/0001" in content(tmp_path / "source")["videos"]
