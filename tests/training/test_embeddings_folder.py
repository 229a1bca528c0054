"""Evaluation of a folder of npz files with embeddings of any origin."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from training import evaluate
from training.data.index import build_index
from training.evaluation.folder_of_embeddings import read_folder
from training.evaluation.scores import evaluate_embeddings

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def arrays(number, split="test"):
    """24 frames of three phases of 8 frames; embeddings point to their phase, with noise."""
    rng = np.random.default_rng(number)
    phases = np.repeat([0, 1, 2], 8)
    noise = 0.05 * rng.standard_normal((24, 4))
    return {"embeddings": 3 * np.eye(4)[phases] + noise, "phases": phases, "split": split}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    for number in range(3):
        np.savez(f"made/train{number}.npz", **arrays(number, "train"))
        np.savez(f"made/test{number}.npz", **arrays(10 + number))
    return Path("made")


def change(path="made/test0.npz", without="", **values):
    found = dict(np.load(path)) | values
    found.pop(without, None)
    np.savez(path, **found)


def test_the_rows_are_the_clock_and_the_embeddings(folder, capsys):
    assert (
        evaluate.main(["made", "--no-store", "--protocol", "lav", "--fractions", "0.5", "1"]) == 0
    )
    result = json.loads(Path("made/evaluation.json").read_text())
    assert [*result["rows"]] == ["time index only", "embeddings"]
    scores = result["rows"]["embeddings"]["metrics"]
    assert scores["classification"] == 1.0
    assert scores["ap_at_5"] == 1.0
    assert "classification_at_0.5" in scores
    assert (result["protocol"], result["fractions"]) == ("lav", [0.5, 1.0])
    assert result["videos"] == {"train": 3, "test": 3}
    assert "written to made/evaluation.json" in capsys.readouterr().out
    videos = read_folder(folder)
    parts = [[v for v in videos if v.record.split == name] for name in ("train", "test")]
    own = evaluate_embeddings(*parts, {}, protocol="lav")["metrics"]
    assert scores["progression"] == own["progression"]


def test_a_replaced_evaluation_with_more_in_it_is_mentioned(folder, capsys):
    def printed(*options):
        assert evaluate.main(["made", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "replaces" in line]

    file = folder / "evaluation.json"
    file.write_text("no JSON")
    assert printed("--metrics", "tau", "classification", "--fractions", "0.5", "1") == []
    assert printed("--metrics", "tau", "retrieval") == [
        "it replaces an evaluation that also had classification, classification at 50 %"
    ]
    assert printed("--metrics", "retrieval", "--ks", "5") == [
        "it replaces an evaluation that also had tau, retrieval at K = 10, retrieval at K = 15"
    ]
    assert printed("--metrics", "retrieval", "tau") == []
    few = ["--metrics", "classification", "--few-shot", "1", "--episodes", "1"]
    assert printed("--protocol", "lav", *few) == ["it replaces an evaluation by the protocol carl"]
    assert printed("--protocol", "lav") == [
        "it replaces an evaluation that also had few-shot classification"
    ]


def test_what_a_file_may_state(folder):
    frames = np.array([0, 1, 4, 5])
    np.savez(
        "made/sub.npz",
        embeddings=np.array([[3, 4], [0, 0], [1, 0], [0, 2]], dtype=np.int32),
        frames=frames,
        phases=np.array([0, 0, -1, 1]),
        id="a/b.mp4",
        action="jump",
        view="ego",
        fps=30,
    )
    for path in [*folder.glob("t*.npz")]:
        path.unlink()
    (video,) = read_folder(folder)
    record = video.record
    assert (record.id, record.action, record.split) == ("a/b.mp4", "jump", "train")
    assert (record.view, record.fps, record.frames) == ("ego", 30.0, 6)
    assert video.frames.tolist() == frames.tolist()
    assert video.phases.tolist() == [0, 0, -1, 1]
    expected = [[0.6, 0.8], [0, 0], [1, 0], [0, 1]]
    np.testing.assert_allclose(video.embeddings, expected, atol=1e-7)
    assert video.embeddings.dtype == np.float32


def test_labels_of_a_prepared_folder(folder, videos, capsys):
    import shutil

    shutil.copytree(videos, "videos")
    names = sorted(path.name for path in Path("videos").glob("*.mp4"))
    entries = {name: {"boundaries": [5], "split": "train"} for name in names}
    entries[names[0]]["split"] = "test"
    content = {"classes": {"all": ["one", "two"]}, "videos": entries}
    Path("videos/labels.json").write_text(json.dumps(content))
    index = build_index("videos")
    for path in [*folder.glob("*.npz")]:
        path.unlink()
    for record in index.videos:
        x = np.random.default_rng(0).standard_normal((record.frames, 3))
        np.savez(f"made/{record.id}.npz", embeddings=x, split="val", phases=np.zeros(1, int))
    assert evaluate.main(["made", "--folder", "videos"]) == 0
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["videos"] == {"train": len(names) - 1, "test": 1}
    assert result["folder"] == "videos"
    assert (result["left_out"], capsys.readouterr().err.count("warning")) == ({}, 0)
    away = Path(f"made/{names[1]}.npz").rename("away")
    assert evaluate.main(["made", "--folder", "videos"]) == 0
    assert f"1 video of videos has no file in made and is left out: {names[1]}\n" in (
        capsys.readouterr().err
    )
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["left_out"] == {names[1]: "it has no npz file"}
    away.rename(f"made/{names[1]}.npz")
    path = f"made/{names[0]}.npz"
    change(path, frames=np.arange(index.videos[0].frames) + 1)
    assert evaluate.main(["made", "--folder", "videos"]) == 2
    assert f"{path} has embeddings of other frames than the usable" in capsys.readouterr().err
    change(path, without="frames")
    change(path, embeddings=np.ones((7, 3)))
    assert evaluate.main(["made", "--folder", "videos"]) == 2
    assert f"{path} has 7 embeddings, and {names[0]} has" in capsys.readouterr().err
    change(path, id="other.mp4")
    assert evaluate.main(["made", "--folder", "videos"]) == 2
    assert "the prepared folder has no video 'other.mp4'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"without": "embeddings"}, "has no array 'embeddings', only phases, split"),
        ({"embeddings": np.ones(24)}, "numbers (frames, dimensions), got float64 (24,)"),
        ({"embeddings": np.ones((0, 4))}, "(frames, dimensions), got float64 (0, 4)"),
        ({"embeddings": np.full((24, 4), np.nan)}, "embeddings contain NaN or infinity"),
        ({"embeddings": np.ones((24, 5))}, "5 numbers per embedding and made/"),
        ({"embeddings": np.full((24, 4), "x")}, "must be numbers"),
        ({"phases": np.zeros(30, int)}, "phases must be 24 integers, one for each embedding"),
        ({"phases": np.zeros(24)}, "phases must be 24 integers"),
        ({"phases": np.full(24, -2)}, "phases must be -1 or more, got -2"),
        ({"frames": np.arange(24)[::-1]}, "frames must be ascending numbers from 0"),
        ({"fps": "30"}, "fps must be one positive number, got the string '30'"),
        ({"fps": 0.0}, "fps must be one positive number, got 0.0"),
        ({"frames": np.arange(24) * 10**12}, "frames must be numbers of frames below 10,000,000"),
        ({"phases": np.r_[np.zeros(23, int), 10**9]}, "below 10,000, got 1000000000"),
        ({"split": 3}, "split must be one string"),
        ({"split": "tset"}, "made/test0.npz: split must be one of train, val, test, got 'tset'"),
        ({"without": "split", "Split": "test"}, "unknown array 'Split'; did you mean 'split'?"),
        ({"without": "phases", "phase": np.zeros(24, int)}, "'phase'; did you mean 'phases'?"),
        ({"id": "test1"}, "have the id 'test1'; each video needs one"),
        ({"embeddings": np.full((24, 4), None)}, "no npz file of arrays without objects"),
    ],
)
def test_a_wrong_file_is_named(folder, capsys, values, message):
    change(**values)
    assert evaluate.main(["made"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "made" in error
    assert not Path("made/evaluation.json").exists()


def test_arrays_of_other_names_are_ignored(folder):
    change(times=np.arange(24), weights="x.pt", label="jump", Split="val")
    assert len(read_folder(folder)) == 6
    change("made/test1.npz", frames=np.arange(24), frame=3)
    assert len(read_folder(folder)) == 6


def test_rows_of_zeros_are_named(folder, capsys):
    read_folder(folder)
    assert capsys.readouterr().err == ""
    x = arrays(0)["embeddings"]
    x[[4, 20]] = 0
    change(embeddings=x)
    read_folder(folder)
    assert ": row 4 of made/test0.npz, row 20 of made/test0.npz\n" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK", "array"])
def test_a_file_that_is_no_npz_file_is_named(folder, capsys, content):
    path = Path("made/test0.npz")
    if content == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros((24, 4)))
    else:
        path.write_bytes(content)
    assert evaluate.main(["made"]) == 2
    assert "error: made/test0.npz is no npz file of arrays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val"], "no video in the split 'val', only in test, train: write 'train' for"),
        (["--checkpoint", "best"], "--checkpoint applies to the network of a run"),
        (["--protocol", "vclr"], "embeds parts of videos, so it needs a run; made contains emb"),
        (["--class-set", "fine"], "add --folder"),
        (["--stride", "0"], "stride is 0"),
    ],
)
def test_wrong_options(folder, capsys, arguments, message):
    assert evaluate.main(["made", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_files_without_split_or_phases(folder, capsys):
    for path in folder.glob("*.npz"):
        change(path, without="split")
    assert evaluate.main(["made"]) == 2
    assert "has no video in the split 'test', only in train" in capsys.readouterr().err
    for path in folder.glob("test*.npz"):
        change(path, split="test", without="phases")
    assert evaluate.main(["made"]) == 2
    error = capsys.readouterr().err
    assert "no video of made in the split 'test' has phases: add the array 'phases'" in error


def test_a_folder_without_npz_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert evaluate.main(["empty"]) == 2
    error = capsys.readouterr().err
    assert "empty is not a run: it contains no config.yaml" in error
    assert "npz" in error


def test_the_snippet_of_the_documentation_writes_such_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    exec(code, {})
    assert evaluate.main(["embeddings"]) == 0
    result = json.loads(Path("embeddings/evaluation.json").read_text())
    assert result["videos"]["train"] > 1
    assert result["videos"]["test"] > 1
