"""The demo on a user's own clips: with labels, without, and its messages about them."""

import json
from pathlib import Path

import pytest
from pairs import grey_video, warped

from training.data.index import build_index
from training.demo import __main__ as demo
from training.runs.model import load_run

SMALL = [
    "model.backbone=small_cnn",
    "model.weights=null",
    "model.random_frozen=true",
    "augmentation.size=16",
    "data.num_frames=8",
    "data.batch_size=2",
    "data.engine=pyav",
    "model.fc_size=16",
    "model.hidden_size=16",
    "model.heads=2",
    "model.ff_size=32",
    "model.layers=1",
    "train.steps=2",
    "train.log_every=1",
]
CLIPS = {"a": (30, 2.0), "b": (24, 0.7), "c": (28, 1.3)}


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, how in CLIPS.items():
        grey_video(folder / f"{name}.mp4", warped(*how))
    return folder


def label(folder, splits: str, marked: str) -> None:
    entries = {
        f"{name}.mp4": {"action": "swing", "split": split}
        | ({"boundaries": [8, 16]} if name in marked else {})
        for name, split in zip(CLIPS, splits.split(), strict=True)
    }
    content = {"classes": {"swing": ["still", "up", "down"]}, "videos": entries}
    (folder / "labels.json").write_text(json.dumps(content))


def test_labelled_clips_are_trained_evaluated_and_reported(clips, capsys):
    label(clips, "train train test", "abc")
    assert demo.main(["--real", "clips", "--seeds", "2", *SMALL]) == 0
    out = capsys.readouterr().out
    steps = [line[3:] for line in out.splitlines() if line.startswith("== ")]
    assert steps == [
        "check and index the clips",
        *[
            f"{step} (seed {seed})"
            for seed in (0, 1)
            for step in ("train CARL", "evaluate", "write the report")
        ],
    ]
    assert "mean and standard deviation over 2 seeds" in out
    assert "no table" not in out
    assert load_run("demo_real/run_1")[1].train.seed == 1
    cfg = load_run("demo_real/run")[1]
    assert (cfg.data.cache, cfg.model.centre, cfg.data.test_split) == ("features", True, "test")
    assert json.loads(Path("demo_real/run/evaluation.json").read_text())["videos"]["test"] == 1
    assert Path("demo_real/run/report.html").read_text().count("<html")
    added = {path.name for path in clips.iterdir()} - {f"{n}.mp4" for n in CLIPS}
    assert added == {"labels.json", "fastseq_index.sqlite", ".fastseq_features"}


@pytest.mark.parametrize(("splits", "marked"), [(None, ""), ("train train test", "a")])
def test_without_labels_it_says_how_to_write_them(clips, capsys, splits, marked):
    if splits:
        label(clips, splits, marked)
    build_index(clips)
    assert demo.main(["--real", "clips", "--out", "out", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "== evaluate" not in out
    assert "== check and index" not in out  # an index that is up to date
    assert f"python -m training.propagate {clips} --sheet-only a.mp4" in out
    assert ("report shows training clips" in out) == (splits is None)
    shown = load_run("out/run")[1].data.test_split
    assert shown == ("train" if splits is None else "test")
    assert Path("out/run/report.html").read_text().count("<html")


def test_wrong_requests(clips, capsys):
    assert demo.main(["--real", "none"]) == 2
    assert "--real none is not a folder" in capsys.readouterr().err
    assert demo.main(["--real", "clips", "--out", "clips/out"]) == 2
    assert "lies in clips, among the clips" in capsys.readouterr().err
    assert demo.main(["--real", "clips", "optm.lr=1"]) == 2
    assert "Did you mean 'optim.lr'" in capsys.readouterr().err
    assert sorted(path.name for path in clips.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--real", "clips", "--clutter"])
    assert stopped.value.code == 2


def test_damaged_clips_alone_are_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"nothing")
    assert demo.main(["--real", "clips"]) == 1
    assert demo.main(["--real", "clips"]) == 2  # the index is up to date now
    assert "has no video that can be read" in capsys.readouterr().err
