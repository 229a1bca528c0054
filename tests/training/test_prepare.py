import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("av")

from fastseq.video import write_video
from training.data.index import INDEX_NAME, load_index
from training.prepare import main


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        levels = np.arange(25, dtype=np.uint8) * 8
        write_video(tmp_path / f"{name}.mp4", [np.full((32, 32, 3), x) for x in levels], 25)
    return tmp_path


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
    assert "ignored: 2 files" in out
    index = load_index(folder)
    assert [video.id for video in index.videos] == ["a.mp4", "b.mp4"]
    assert sorted(entry["path"] for entry in index.bad) == ["cut.mp4", "text.mp4", "zero.mov"]
    assert not list(folder.glob("*.part"))


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
    assert "used as far as they go: 1 damaged videos" in out
    _, damaged = load_index(folder).videos
    assert 0 < damaged.frames < 25
    assert damaged.note in out


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
        ([str(folder), "--time-limit", "0"], "must be positive"),
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
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_a_folder_without_a_usable_video_says_why(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "none has the ending of a video file's name" in capsys.readouterr().err
    (tmp_path / "zero.mp4").write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    assert "all are damaged" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['prepare', '--help']\n"
        "try: runpy.run_module('training.prepare', run_name='__main__')\n"
        "finally: print('HEAVY', [m for m in ('torch', 'av', 'numpy', 'tqdm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--verify" in out.stdout
    assert "HEAVY []" in out.stdout
