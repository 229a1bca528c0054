"""training.extract --format bmn and gtad, and training.localise, from videos to the table."""

import json
import os
import shutil

import numpy as np
import pytest

from training import extract, labels, localise, prepare, train
from training.demo.untrimmed import render_untrimmed
from training.evaluation.embed import load_embeddings
from training.localisation.annotations import Annotated, write_annotations
from training.localisation.evaluate import BMN_ROW, RANDOM_ROW, UNIFORM_ROW
from training.localisation.formats import feature_path, write_features
from training.localisation.metrics import average_recall
from training.localisation.pictures import panel_title
from training.support.command import UserError

QUICK = ["--epochs", "2", "--channels", "4", "--samples", "4"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Untrimmed videos and a run that has seen them for a step; tests must not change them."""
    folder = tmp_path_factory.mktemp("untrimmed")
    render_untrimmed(folder / "videos", train=4, test=2, side=32, progress=False)
    assert prepare.main([str(folder / "videos")]) == 0
    overrides = [f"data.folder={folder / 'videos'}", f"train.run_dir={folder / 'run'}"]
    overrides += ["train.steps=1", "train.device=cpu", "data.batch_size=2", "augmentation.size=32"]
    assert train.main(["recipes/vclr_demo.yaml", *overrides]) == 0
    return folder


@pytest.fixture
def features(tmp_path):
    """Features that tell where a segment is and of which class, and its annotations."""
    rng = np.random.default_rng(0)
    videos = []
    for number in range(50):
        seconds = float(rng.uniform(20, 60))
        count = int(rng.integers(1, 3))
        edges = np.sort(rng.choice(np.arange(1, 20), 2 * count, replace=False)) / 20
        labels = tuple(rng.choice(["run", "jump"], count).tolist())
        split = "train" if number < 40 else "test"
        segments = seconds * edges.reshape(-1, 2)
        videos.append(Annotated(f"v_{number}", seconds, 600, split, segments, labels))
        values = rng.standard_normal((20, 3)).astype(np.float32) * 0.3
        for (start, stop), label in zip(edges.reshape(-1, 2) * 20, labels, strict=True):
            values[round(start) : round(stop), 0 if label == "run" else 1] += 2
        write_features(feature_path(tmp_path / "features", "bmn", 20, f"v_{number}"), values)
    write_annotations(tmp_path / "features", videos)
    return tmp_path / "features"


@pytest.fixture
def no_pictures(monkeypatch):
    """Without the pictures, which take most of the time of a short training."""
    for name in ("recall_curves", "proposal_bars"):
        monkeypatch.setattr(f"training.localisation.pictures.{name}", lambda *_: None)


def test_bmn_beats_the_baselines(features, tmp_path, capsys):
    options = ["--epochs", "20", "--channels", "8", "--samples", "8", "--lr", "5e-3"]
    assert localise.main([str(features), "--out", str(tmp_path / "out"), *options]) == 0
    content = json.loads((tmp_path / "out/localisation.json").read_text())
    assert content["videos"] == {"train": 40, "test": 10, "left_out": {}}
    rows = {name: one["metrics"] for name, one in content["rows"].items()}
    assert [*rows] == [BMN_ROW, RANDOM_ROW, UNIFORM_ROW]
    assert rows[BMN_ROW]["AUC"] > 0.85
    for other in (RANDOM_ROW, UNIFORM_ROW):
        assert rows[BMN_ROW]["AUC"] > rows[other]["AUC"] + 0.1
        assert rows[BMN_ROW]["average mAP"] > rows[other]["average mAP"] + 0.3
    losses = content["rows"][BMN_ROW]["losses"]
    assert losses[-1] < losses[0] / 2
    out = capsys.readouterr().out
    assert f"{100 * rows[BMN_ROW]['AUC']:.1f}" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {*results} == {"version", "results", "external_data"}
    truth = json.loads((features / "activity_net.json").read_text())["database"]
    assert {*results["results"]} == {n for n, one in truth.items() if one["subset"] == "testing"}
    for name, found in results["results"].items():
        assert 0 < len(found) <= 100
        for one in found:
            assert 0 <= one["segment"][0] < one["segment"][1] <= truth[name]["duration"] + 1e-6
            assert one["label"] in ("run", "jump")
    for picture in ("ar_an.png", "proposals.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_titles_of_the_panels_name_the_classes():
    labels = ("run", "jump", "jump", "run")
    video = Annotated("v_a", 9.0, 90, "test", np.arange(8.0).reshape(4, 2), labels)
    assert panel_title(video) == "v_a: run, jump (2), run"
    many = Annotated("v_a", 99.0, 990, "test", np.arange(80.0).reshape(40, 2), labels * 10)
    assert len(panel_title(many)) <= 90


def test_weights_can_be_loaded(features, tmp_path, no_pictures):
    import torch

    from training.localisation.model import BMN

    arguments = [str(features), "--out", str(tmp_path / "out"), *QUICK, "--no-random-row"]
    assert localise.main(arguments) == 0
    weights = torch.load(tmp_path / "out/bmn.pth", weights_only=True)
    BMN(3, 20, channels=4, samples=4).load_state_dict(weights)
    assert weights["std"][2] == pytest.approx(0.3, abs=0.02)  # of the third feature, all noise
    rows = json.loads((tmp_path / "out/localisation.json").read_text())["rows"]
    assert [*rows] == [BMN_ROW, UNIFORM_ROW]


def test_auc_of_the_written_proposals_is_the_printed_one(features, tmp_path, no_pictures):
    arguments = [str(features), "--out", str(tmp_path / "out"), *QUICK, "--no-random-row"]
    assert localise.main(arguments) == 0
    content, proposals, results = (
        json.loads((tmp_path / f"out/{name}.json").read_text())
        for name in ("localisation", "proposals", "results")
    )
    assert {*proposals} == {"version", "results", "external_data"}  # as eval_proposal.py requires
    truth = json.loads((features / "activity_net.json").read_text())["database"]
    segments = {
        name: np.array([one["segment"] for one in entry["annotations"]])
        for name, entry in truth.items()
        if entry["subset"] == "testing"
    }
    found = [
        average_recall(
            segments,
            {
                name: np.array([[*one["segment"], one["score"]] for one in entries])
                for name, entries in written["results"].items()
            },
        )
        for written in (proposals, results)
    ]
    row = content["rows"][BMN_ROW]
    assert found[0].auc == row["metrics"]["AUC"]
    assert found[0].average.tolist() == row["AR"]
    assert found[1].average.tolist() != row["AR"]  # the scores of results.json are others


def test_an_earlier_result_is_kept(features, tmp_path, capsys, no_pictures):
    arguments = [str(features), "--out", str(tmp_path / "out"), *QUICK, "--no-random-row"]
    assert localise.main(arguments) == 0
    result = tmp_path / "out/localisation.json"
    written = result.read_text()
    capsys.readouterr()
    assert localise.main([*arguments, "--seed", "1"]) == 2
    assert f"{result} exists already; --overwrite replaces it" in capsys.readouterr().err
    assert result.read_text() == written
    assert localise.main([*arguments, "--seed", "1", "--overwrite"]) == 0
    assert result.read_text() != written


@pytest.mark.parametrize("name", ["proposals.json", "bmn.pth"])
def test_a_full_disk(tmp_path, name):
    """An earlier result is not taken for the new one, whose files are incomplete."""

    def full(file):
        raise (RuntimeError if name == "bmn.pth" else OSError)("no space left on device")

    (tmp_path / localise.RESULT).write_text("{}")
    files = {name: full, localise.RESULT: lambda file: file.write_text("{}")}
    with pytest.raises(UserError, match=rf"{name} cannot be written \(.*no space left on device\)"):
        localise.write_all(tmp_path, files)
    assert not (tmp_path / localise.RESULT).exists()


def test_the_same_seed_gives_the_same_figures(features, tmp_path, no_pictures):
    found = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = [*QUICK, "--seed", seed, "--no-random-row"]
        assert localise.main([str(features), "--out", str(tmp_path / name), *options]) == 0
        content = json.loads((tmp_path / name / "localisation.json").read_text())
        found.append(content["rows"][BMN_ROW])
    assert found[0] == found[1] != found[2]


def test_from_videos_to_the_table(made, tmp_path, capsys, no_pictures):
    for form in ("npz", "bmn", "gtad"):
        arguments = [str(made / "run"), "--out", str(tmp_path / form), "--format", form]
        assert extract.main(arguments + ["--steps", "25"] * (form != "npz")) == 0
    out = capsys.readouterr().out
    names = sorted(path.stem for path in (tmp_path / "bmn/csv_mean_25").iterdir())
    assert names == sorted(path.stem for path in (tmp_path / "gtad").glob("*.npy"))
    assert len(names) == 6
    rows = np.loadtxt(tmp_path / f"bmn/csv_mean_25/{names[0]}.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(rows, np.load(tmp_path / f"gtad/{names[0]}.npy"), rtol=1e-4)
    embeddings = load_embeddings(tmp_path / f"npz/{names[0][2:]}.mp4.npz")["embeddings"]
    assert rows.shape == (25, embeddings.shape[1])
    assert f"6 videos of T = 25 steps and E = {rows.shape[1]} features written" in out
    whole = embeddings.mean(axis=0) * np.sqrt(embeddings.shape[1])
    np.testing.assert_allclose(rows.mean(axis=0), whole, atol=0.02)
    labels = json.loads((made / "videos/labels.json").read_text())["videos"]
    annotations = json.loads((tmp_path / "bmn/anet_anno.json").read_text())
    for name, entry in annotations.items():
        expected = labels[f"{name.removeprefix('v_')}.mp4"]["segments"]
        found = [(*one["segment"], one["label"]) for one in entry["annotations"]]
        assert [one[2] for one in found] == [one[2] for one in expected]
        np.testing.assert_allclose(
            [one[:2] for one in found], [[a / 30, b / 30] for a, b, _ in expected], atol=1e-5
        )
    metrics = []
    for form, more in (("bmn", []), ("npz", ["--folder", str(made / "videos")])):
        arguments = [str(tmp_path / form), "--out", str(tmp_path / f"out_{form}"), *more, *QUICK]
        assert localise.main([*arguments, "--no-random-row"]) == 0
        content = json.loads((tmp_path / f"out_{form}/localisation.json").read_text())
        assert content["segments"]["train"] > 0
        metrics.append(content["rows"][UNIFORM_ROW]["metrics"]["AUC"])
    assert metrics[0] == pytest.approx(metrics[1])
    assert metrics[0] > 0.3


def test_names_of_activitynets_tree(made, tmp_path):
    """The files have the ids of activity_net.v1-3.min.json, whatever the folders are."""
    videos = sorted((made / "videos").glob("*.mp4"))
    source = tmp_path / "anet"
    database = {}
    for number, path in enumerate(videos):
        place = source / "v1-3" / ("test" if number < 2 else "train_val")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"v_-{path.stem}.mp4").symlink_to(path)
        database[f"-{path.stem}"] = {
            "subset": "validation" if number < 2 else "training",
            "annotations": [{"segment": [1.0, 2.0], "label": "Zumba"}],
        }
    official = {"version": "VERSION 1.3", "taxonomy": [], "database": database}
    (source / "activity_net.v1-3.min.json").write_text(json.dumps(official))
    assert labels.main(["activitynet", str(source), "--out", str(tmp_path / "videos")]) == 0
    assert prepare.main([str(tmp_path / "videos")]) == 0
    arguments = [str(made / "run"), "--out", str(tmp_path / "out"), "--no-store", "--steps", "10"]
    arguments += ["--folder", str(tmp_path / "videos"), "--format", "bmn"]
    assert extract.main(arguments) == 0
    names = {f"v_{one}" for one in database}
    assert {path.stem for path in (tmp_path / "out/csv_mean_10").iterdir()} == names
    assert {*json.loads((tmp_path / "out/anet_anno.json").read_text())} == names
    assert {*json.loads((tmp_path / "out/activity_net.json").read_text())["database"]} == {
        *database
    }
    arguments = [str(tmp_path / "out"), "--out", str(tmp_path / "localised"), *QUICK]
    assert localise.main([*arguments, "--no-random-row"]) == 0
    results = json.loads((tmp_path / "localised/results.json").read_text())["results"]
    assert {*results} == {one for one in database if database[one]["subset"] == "validation"}


def test_extract_leaves_out_what_cannot_be_read(made, tmp_path, capsys):
    shutil.copytree(made / "videos", tmp_path / "videos")
    (tmp_path / "videos/train_001.mp4").unlink()
    labels = json.loads((tmp_path / "videos/labels.json").read_text())
    del labels["videos"]["train_001.mp4"]
    del labels["videos"]["train_002.mp4"]["segments"]
    (tmp_path / "videos/labels.json").write_text(json.dumps(labels))
    assert prepare.main([str(tmp_path / "videos")]) == 0
    broken = tmp_path / "videos/train_000.mp4"
    stamp = broken.stat()
    broken.write_bytes(b"\0" * stamp.st_size)
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    arguments = [str(made / "run"), "--out", str(tmp_path / "out"), "--format", "gtad"]
    arguments += ["--folder", str(tmp_path / "videos"), "--no-store"]
    capsys.readouterr()
    assert extract.main(arguments) == 3
    out = capsys.readouterr().out
    assert "4 videos of T = 100 steps" in out
    assert "1 video without segments" in out
    assert "train_000.mp4" in out
    found = json.loads((tmp_path / "out/anet_anno.json").read_text())
    assert {*found} == {"v_train_003", "v_test_000", "v_test_001"}
    assert (tmp_path / "out/v_train_002.npy").is_file()


def test_features_of_an_interrupted_extraction_are_not_used(made, tmp_path, monkeypatch, capsys):
    arguments = [str(made / "run"), "--out", str(tmp_path / "out"), "--format", "bmn"]
    assert extract.main([*arguments, "--steps", "10"]) == 0

    def stopped(path, features):
        raise OSError("no space left on device")

    monkeypatch.setattr("training.localisation.formats.write_features", stopped)
    assert extract.main([*arguments, "--steps", "10"]) == 2
    assert localise.main([str(tmp_path / "out"), "--out", str(tmp_path / "localised"), *QUICK]) == 2
    assert "has no anet_anno.json; extract with --format bmn" in capsys.readouterr().err


def test_videos_without_features_are_left_out(features, tmp_path, capsys, no_pictures):
    (features / "csv_mean_20/v_3.csv").unlink()
    arguments = [str(features), "--out", str(tmp_path / "out"), *QUICK, "--no-random-row"]
    assert localise.main(arguments) == 3
    content = json.loads((tmp_path / "out/localisation.json").read_text())
    assert content["videos"] == {
        "train": 39,
        "test": 10,
        "left_out": {"v_3": "no file of features"},
    }
    printed = capsys.readouterr()
    assert "v_3: no file of features" in printed.err
    assert "`python -m training.extract RUN --out FEATURES --format bmn`" in printed.out
    assert "training.prepare" not in printed.out


@pytest.mark.parametrize(
    ("subset", "message"),
    [("testing", "no video in the split 'train'"), ("training", "no video in the split 'test'")],
)
def test_both_splits_are_needed(features, tmp_path, capsys, subset, message):
    path = features / "anet_anno.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({n: x for n, x in content.items() if x["subset"] == subset}))
    assert localise.main([str(features), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_validation_is_scored_where_there_is_no_test(features, tmp_path, no_pictures):
    path = features / "anet_anno.json"
    path.write_text(path.read_text().replace('"testing"', '"validation"'))
    arguments = [str(features), "--out", str(tmp_path / "out"), *QUICK, "--no-random-row"]
    assert localise.main(arguments) == 0
    assert json.loads((tmp_path / "out/localisation.json").read_text())["split"] == "val"


def test_without_annotations(features, tmp_path, capsys):
    (features / "anet_anno.json").unlink()
    assert localise.main([str(features), "--out", str(tmp_path / "out")]) == 2
    assert "has no anet_anno.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--epochs", "0"], ["--lr", "-1"], ["--seed", "-1"], ["--batch-size", "0"]]
)
def test_wrong_options(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        localise.main(["features", "--out", "out", *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    with pytest.raises(SystemExit):
        extract.main(["run", "--out", "out", "--format", "bmn", "--steps", "1"])
    assert "--steps must be at least 2, got 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        extract.main(["run", "--out", "out", "--steps", "50"])
    assert "--steps applies to --format bmn and gtad" in capsys.readouterr().err


def test_two_videos_of_one_name(made, tmp_path, capsys):
    shutil.copytree(made / "videos", tmp_path / "videos")
    shutil.copy(tmp_path / "videos/test_000.mp4", tmp_path / "videos/test_000.mov")
    assert prepare.main([str(tmp_path / "videos")]) == 0
    arguments = [str(made / "run"), "--out", str(tmp_path / "out"), "--format", "bmn"]
    capsys.readouterr()
    assert extract.main([*arguments, "--folder", str(tmp_path / "videos"), "--no-store"]) == 2
    assert "would both be written as v_test_000; rename one" in capsys.readouterr().err
    assert not [*(tmp_path / "out").rglob("*.csv")]
