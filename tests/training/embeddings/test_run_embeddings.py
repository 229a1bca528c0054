"""RUN/embeddings: computed once, read by every command, checkpoint by checkpoint."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_runs import made, new_file, records, rows_of
from test_left_out import NAMES

from training import align, evaluate, export, extract, propagate, report, retrieve
from training.data.index import build_index
from training.evaluation.embed import load_embeddings
from training.evaluation.stored import RunEmbeddings
from training.evaluation.videos import open_index
from training.pages.report_page import evaluation_section
from training.runs.folder import contents
from training.runs.model import load_run


def test_a_second_evaluation_decodes_nothing_and_has_the_same_figures(run, decoded):
    assert evaluate.main(["run"]) == 0
    assert sorted(decoded) == sorted(record.id for record in records())
    first = rows_of()
    decoded.clear()
    assert evaluate.main(["run"]) == 0
    assert rows_of() == first
    assert evaluate.main(["run", "--protocol", "lav"]) == 0
    assert report.main(["run"]) == 0
    assert retrieve.main(["--run", "run"]) == 0
    pair = ["test0.mp4", "test1.mp4"]
    assert align.main([*pair, "--run", "run", "--out", "aligned"]) == 0
    assert propagate.main(["videos", "--from", "train0.mp4", "--run", "run"]) == 0
    assert extract.main(["run", "--out", "out"]) == 0
    assert decoded == []
    for path in Path("out").glob("*.npz"):
        kept = next(Path("run/embeddings").glob(f"trained-*/{path.name}"))
        with np.load(kept) as one:
            np.testing.assert_array_equal(load_embeddings(path)["embeddings"], one["embeddings"])


def test_without_the_store_nothing_is_read_or_written(run, decoded):
    assert evaluate.main(["run", "--no-store"]) == 0
    plain = rows_of()
    assert not Path("run/embeddings").exists()
    assert evaluate.main(["run"]) == 0
    assert rows_of() == plain
    decoded.clear()
    assert evaluate.main(["run", "--no-store"]) == 0
    assert len(decoded) == len(NAMES)


def test_labels_are_those_of_the_records(run, decoded):
    assert evaluate.main(["run"]) == 0
    before = rows_of()
    labels = json.loads(Path("videos/labels.json").read_text())
    for entry in labels["videos"].values():
        entry["boundaries"] = [4, 25]
    Path("videos/labels.json").write_text(json.dumps(labels))
    build_index("videos")
    decoded.clear()
    assert evaluate.main(["run"]) == 0
    assert decoded == []
    assert rows_of() != before


def relabelled(content):
    for entry in content["videos"].values():
        entry["boundaries"] = [4, 25]


def moved(content):
    content["videos"]["test1.mp4"]["split"] = "train"


def table(run) -> str:
    """The report's section on run/evaluation.json."""
    found = RunEmbeddings(run)
    index = open_index(found.cfg)
    options = {"folder": None, "checkpoint": None, "progress": False}
    return "".join(evaluation_section(run, found.cfg, index, found.weights["step"], **options))


def test_the_report_tells_a_table_of_other_labels_or_splits(run):
    other = "The table was made with other labels, splits or videos: run `python -m training.eval"
    file, labels = Path("run/evaluation.json"), Path("videos/labels.json")
    assert 'class="warning"' not in table(run)
    assert 'class="warning"' not in table(run)  # a file that is there already
    before = labels.read_text()
    for change in (relabelled, moved):
        content = json.loads(before)
        change(content)
        labels.write_text(json.dumps(content))
        build_index("videos")
        assert other in table(run)
    file.unlink()
    assert other not in table(run)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"class_set": "fine"}))
    text = table(run)
    assert "The table&#x27;s class set is &#x27;fine&#x27;, the run&#x27;s is none: run" in text
    assert other not in text


def cropped(name):
    labels = json.loads(Path("videos/labels.json").read_text())
    labels["videos"][name]["crop"] = [0, 0, 32, 32]
    Path("videos/labels.json").write_text(json.dumps(labels))


def trimmed(name):
    labels = json.loads(Path("videos/labels.json").read_text())
    labels["videos"][name] |= {"trim": [0, 26], "boundaries": [10, 20]}
    Path("videos/labels.json").write_text(json.dumps(labels))


@pytest.mark.parametrize("change", [new_file, cropped, trimmed])
def test_a_changed_video_is_embedded_again_and_no_other(run, decoded, change):
    made(run)
    change("test1.mp4")
    build_index("videos")
    decoded.clear()
    found = made(run)
    assert decoded == ["test1.mp4"]
    names = [record.id for record in records()]
    plain = made(run, store=False)[names.index("test1.mp4")]
    np.testing.assert_array_equal(found[names.index("test1.mp4")], plain)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("backbone_share: 0.0", "backbone_share: 0.5"),
        ("cache_side: null", "cache_side: 20"),
    ],
)
def test_other_settings_embed_again_and_replace_the_files(run, decoded, before, after):
    made(run)
    (old,) = Path("run/embeddings").iterdir()
    config = Path("run/config.yaml")
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    decoded.clear()
    made(run)
    assert len(decoded) == len(NAMES)
    (new,) = Path("run/embeddings").iterdir()
    assert new != old


def test_each_checkpoint_has_its_embeddings_and_its_result(run, decoded, capsys):
    latest, first = made(run), made(run, checkpoint="step_1")
    assert not np.allclose(latest[0], first[0])
    shutil.copy("run/checkpoints/step_00000001.pt", "run/checkpoints/best.pt")
    decoded.clear()
    assert all(map(np.array_equal, made(run, checkpoint="best"), first))
    assert decoded == []  # the same weights
    capsys.readouterr()
    assert evaluate.main(["run", "--checkpoint", "best"]) == 0
    assert "\ncheckpoint best, step 1; 3 training and 3 test videos" in capsys.readouterr().out
    result = json.loads(Path("run/evaluation_best.json").read_text())
    assert (result["checkpoint"], result["step"]) == ("best", 1)
    assert evaluate.main(["run"]) == 0
    result = json.loads(Path("run/evaluation.json").read_text())
    assert (result["checkpoint"], result["step"]) == ("step_00000002", 2)
    assert Path("run/evaluation_best.json") in contents(run)
    assert evaluate.main(["run", "--checkpoint", "step_1", "--protocol", "vclr"]) == 2
    assert "step" not in capsys.readouterr().err
    assert export.main(["run", "one.pt", "--checkpoint", "step_00000001"]) == 0
    one, best = torch.load("one.pt", weights_only=True), load_run("run", checkpoint="best")[0]
    assert all(torch.equal(one[name], value) for name, value in best.state_dict().items())
    assert extract.main(["run", "--out", "out", "--checkpoint", "1.pt"]) == 0
    written = load_embeddings(Path("out/test0.mp4.npz"))
    assert written["weights"].startswith("step_00000001.pt ")
    names = [record.id for record in records()]
    np.testing.assert_array_equal(written["embeddings"], first[names.index("test0.mp4")])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "no checkpoint best (train.keep_best keeps one while a run trains); choose one"),
        ("step_7", "no checkpoint step_00000007; choose one of latest, step_00000001, step_0"),
        ("newest", "'newest' is no name of a checkpoint; expected latest, best or step_N"),
    ],
)
def test_a_checkpoint_that_is_not_there(run, capsys, name, message):
    assert evaluate.main(["run", "--checkpoint", name]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_gone_names_the_run_once_and_best_among_the_others(run, capsys):
    shutil.copy("run/checkpoints/step_00000001.pt", "run/checkpoints/best.pt")
    others = "latest, best, step_00000001, step_00000002"
    for command in (
        lambda: evaluate.main(["run", "--checkpoint", "step_7"]),
        lambda: export.main(["run", "one.pt", "--checkpoint", "step_7"]),
    ):
        assert command() == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"error: run has no checkpoint step_00000007; choose one of {others}"
        )


def test_extracted_files_name_the_weights_that_were_loaded(run):
    newest = Path("run/checkpoints/step_00000002.pt")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:100])

    def extracted(*options) -> str:
        assert extract.main(["run", "--out", "out", *options]) == 0
        return load_embeddings(Path("out/test0.mp4.npz"))["weights"]

    assert extracted().startswith("step_00000001.pt ")
    newest.write_bytes(whole)
    assert extracted().startswith("step_00000002.pt ")
    best = Path("run/checkpoints/best.pt")  # without an entry in the manifest
    best.write_bytes(Path("run/checkpoints/step_00000001.pt").read_bytes())
    first = extracted("--checkpoint", "best")
    best.write_bytes(whole)
    assert extracted("--checkpoint", "best") != first


@pytest.mark.parametrize(
    ("command", "name"), [(evaluate, "evaluation_val.json"), (report, "report.html")]
)
def test_a_run_that_cannot_be_written_is_refused_before_any_work(
    run, decoded, monkeypatch, capsys, command, name
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # file modes do not bind root
    assert command.main(["run", *["--split", "val"] * (command is evaluate)]) == 2
    assert f"error: run is not writable, and {name} is written there: grant" in (
        capsys.readouterr().err
    )
    assert decoded == []
    assert not Path("run/embeddings").exists()


def test_a_damaged_checkpoint_is_named(run, capsys):
    path = Path("run/checkpoints/step_00000001.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert export.main(["run", "one.pt", "--checkpoint", "step_1"]) == 2
    assert "its SHA-256 is not that of the manifest" in capsys.readouterr().err


def test_extract_names_the_checkpoint_that_was_loaded(run):
    newest = Path("run/checkpoints/step_00000002.pt")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + b"?")
    assert extract.main(["run", "--out", "out"]) == 0
    first = load_embeddings("out/test0.mp4.npz")
    assert first["weights"].startswith("step_00000001.pt ")
    newest.write_bytes(whole)
    assert extract.main(["run", "--out", "out"]) == 0
    second = load_embeddings("out/test0.mp4.npz")
    assert second["weights"].startswith("step_00000002.pt ")
    assert not np.allclose(first["embeddings"], second["embeddings"])


def test_embeddings_of_a_checkpoint_that_is_gone_are_removed(run):
    made(run, checkpoint="step_1")
    made(run)
    assert len([*Path("run/embeddings").iterdir()]) == 2
    Path("run/checkpoints/step_00000001.pt").unlink()
    for path in Path("run/embeddings").glob("*/test0.mp4.npz"):
        path.unlink()
    made(run)
    (left,) = Path("run/embeddings").iterdir()
    assert json.loads((left / "about.json").read_text())["checkpoint"] == "step_00000002"
