"""RUN/embeddings: computed once, read by every command, checkpoint by checkpoint."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import launch, said, wait
from runs import RECIPE
from test_left_out import NAMES, encode
from two_ranks import evaluate_and_extract

from training import align, evaluate, export, extract, propagate, report, retrieve, train
from training.data.index import build_index, load_index
from training.evaluation import stored
from training.evaluation.embed import load_embeddings
from training.evaluation.encoders import BACKBONE, BACKBONE_CENTRED, TRAINED
from training.evaluation.stored import RunEmbeddings, run_embeddings
from training.evaluation.stored_files import balanced
from training.evaluation.videos import open_index
from training.pages.report_page import evaluation_section
from training.runs.folder import contents, evaluation_file
from training.runs.model import load_run
from training.support import distributed
from training.support.command import LeftOut, UserError

OPTIONS = ["train.steps=2", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with labelled videos and a run of two steps with both checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "videos").mkdir()
    entries = {}
    for seed, name in enumerate(NAMES):
        encode(folder / "videos" / f"{name}.mp4", seed)
        entries[f"{name}.mp4"] = {"split": name[:-1], "boundaries": [10, 20 - seed]}
    labels = {"classes": {"all": ["x", "y", "z"]}, "videos": entries}
    (folder / "videos" / "labels.json").write_text(json.dumps(labels))
    build_index(folder / "videos")
    (folder / "tiny.yaml").write_text(RECIPE)
    places = [f"data.folder={folder / 'videos'}", f"train.run_dir={folder / 'run'}"]
    assert train.main([str(folder / "tiny.yaml"), *places, *OPTIONS]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of that folder to work in; the videos keep their times of modification."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return Path("run")


@pytest.fixture
def decoded(monkeypatch):
    """The ids of the videos that are decoded from now on."""
    from training.data import dataset

    ids, load_videos = [], dataset.load_videos

    def noted(records, *arguments, **options):
        ids.extend(record.id for record in records)
        return load_videos(records, *arguments, **options)

    monkeypatch.setattr(dataset, "load_videos", noted)
    return ids


def records():
    return list(load_index("videos").videos)


def made(run, **options):
    found, _ = run_embeddings(run, records(), progress=False, **options)
    return [video.embeddings for video in found[TRAINED]]


def rows_of(file="run/evaluation.json"):
    return json.loads(Path(file).read_text())["rows"]


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


def new_file(name):
    os.utime(f"videos/{name}", ns=(1, 1))


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


def cut_off(path):
    path.write_bytes(path.read_bytes()[:300])


def empty(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # within the embeddings, which come first
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, empty, flipped])
def test_a_damaged_file_is_computed_again(run, decoded, damage):
    before = made(run)
    (path,) = Path("run/embeddings").glob("*/test0.mp4.npz")
    damage(path)
    decoded.clear()
    assert all(map(np.array_equal, made(run), before))
    assert decoded == ["test0.mp4"]


def test_another_process_that_replaces_or_removes_files_changes_nothing(run, decoded, monkeypatch):
    """RUN/embeddings is looked up, then another command with --folder embeds other videos."""
    before = made(run)
    missing = RunEmbeddings._missing

    def then_others_write(self, records):
        found = missing(self, records)
        (path,) = Path("run/embeddings").glob("*/test0.mp4.npz")
        with np.load(path) as content:
            other = dict(content) | {"stamp": "of another video"}
        np.savez(path, **other | {"embeddings": other["embeddings"][::-1]})
        (path,) = Path("run/embeddings").glob("*/test1.mp4.npz")
        path.unlink()
        return found

    monkeypatch.setattr(RunEmbeddings, "_missing", then_others_write)
    decoded.clear()
    assert all(map(np.array_equal, made(run), before))
    assert sorted(decoded) == ["test0.mp4", "test1.mp4"]


def test_a_video_that_is_replaced_while_it_is_embedded_is_embedded_again(run, decoded, monkeypatch):
    write = stored.StoredFiles.write

    def replaced(self, record, content, stamp):
        if record.id == "test1.mp4":
            new_file("test1.mp4")
        write(self, record, content, stamp)

    with monkeypatch.context() as patch:
        patch.setattr(stored.StoredFiles, "write", replaced)
        made(run)
    build_index("videos")
    decoded.clear()
    made(run)
    assert decoded == ["test1.mp4"]


def test_a_full_disk_and_a_folder_without_permission_are_no_errors(run, monkeypatch, capsys):
    plain = made(run, store=False)
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(stored.shutil, "disk_usage", lambda path: usage(stored._RESERVE + 10))
        assert all(map(np.array_equal, made(run), plain))
    assert "the embeddings 'trained' are not stored: they need" in capsys.readouterr().err
    assert not [*run.glob("embeddings/*/*.npz")]

    def full(*arguments, **arrays):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert all(map(np.array_equal, made(run), plain))
    error = capsys.readouterr().err
    assert error.count("no more embeddings are stored in run/embeddings (No space left") == 1
    assert not [*run.glob("embeddings/*/*.npz"), *run.glob("embeddings/*/.*.part")]
    monkeypatch.setattr(stored.os, "access", lambda *_: False)
    assert all(map(np.array_equal, made(run), plain))
    assert "is not writable: the embeddings are not stored" in capsys.readouterr().err


def test_the_size_of_new_files_is_printed(run, monkeypatch, capsys):
    """The backbone is embedded anew each time, as with data.cache=features."""
    monkeypatch.setattr(stored, "_MENTIONED", 0)
    untrained = "untrained"
    made(run, rows=(TRAINED, untrained))
    new_file("test1.mp4")
    build_index("videos")
    kept = RunEmbeddings(run, rows=(TRAINED, untrained))
    kept._files.pop(untrained)
    capsys.readouterr()
    kept.embed(records())
    (frames,) = [one.frames for one in records() if one.id == "test1.mp4"]
    assert f"embeddings of {frames} frames are stored: " in capsys.readouterr().err


def test_a_folder_without_permission_is_read(run, decoded, monkeypatch, capsys):
    before = made(run)
    monkeypatch.setattr(stored.os, "access", lambda *_: False)
    decoded.clear()
    assert all(map(np.array_equal, made(run), before))
    assert decoded == []
    assert capsys.readouterr().err == ""
    (path,) = Path("run/embeddings").glob("*/test0.mp4.npz")
    path.unlink()
    assert all(map(np.array_equal, made(run), before))
    assert decoded == ["test0.mp4"]
    assert capsys.readouterr().err.count("is not writable: the embeddings are not stored") == 1
    assert not path.exists()


def test_the_rows_of_the_backbone_share_one_file(run, decoded):
    file, model = Path("backbone.pt"), load_run("run")[0]
    torch.save(model.backbone.state_dict(), file)
    options = [f"model.weights={file}", "model.train_from=none", "train.run_dir=frozen"]
    assert train.main(["tiny.yaml", f"data.folder={Path('videos').resolve()}", *options]) == 0
    opened = RunEmbeddings("frozen", rows=None)
    first = opened.embed(records(), progress=False)
    alone = next(Path("frozen/embeddings").glob("backbone*/test0.mp4.npz"))
    with np.load(alone) as content:
        assert content["features"].dtype == np.float32
        assert "embeddings" not in content.files
    assert len([*Path("frozen/embeddings").glob("backbone*")]) == 1
    decoded.clear()
    second = RunEmbeddings("frozen", rows=None).embed(records(), progress=False)
    assert decoded == []
    assert {BACKBONE, BACKBONE_CENTRED, TRAINED} < first.keys()
    for name, videos in first.items():
        for a, b in zip(videos, second[name], strict=True):
            np.testing.assert_array_equal(a.embeddings, b.embeddings)
    plain, _ = run_embeddings("frozen", records(), rows=[BACKBONE_CENTRED], progress=False)
    assert [*plain] == [BACKBONE_CENTRED]
    with pytest.raises(UserError, match="has no row 'backbone alone'; it has untrained, trained"):
        run_embeddings("run", records(), rows=[BACKBONE])


def test_videos_that_cannot_be_read_keep_the_order(run):
    made(run)
    for path in Path("run/embeddings").glob("*/t*[02].mp4.npz"):
        path.unlink()
    found, names = records(), [record.id for record in records()]
    Path("videos/test0.mp4").write_bytes(b"no video")
    left_out = LeftOut()
    videos, _ = run_embeddings(run, found, left_out=left_out, progress=False)
    assert [*left_out.videos] == ["test0.mp4"]
    kept = [name for name in names if name != "test0.mp4"]
    assert [video.record.id for video in videos[TRAINED]] == kept


def test_a_video_of_another_place_is_not_written_outside(run, tmp_path):
    inside, one, *_ = records()
    away = replace(one, id=str(tmp_path / "elsewhere"))
    run_embeddings(run, [inside, away, replace(one, id="../up")], progress=False)
    assert [*run.glob(f"embeddings/*/{inside.id}.npz")]
    assert not [*tmp_path.glob("**/elsewhere.npz"), *tmp_path.glob("**/up.npz")]


def test_names_of_results_do_not_collide():
    choices = [
        (split, class_set, checkpoint)
        for split in (None, "val", "train")
        for class_set in (None, "fine", "val", "best", "step_00000001", "val_best", "best_val")
        for checkpoint in (None, "best", "step_1")
    ]
    assert len({evaluation_file(*choice) for choice in choices}) == len(choices)
    assert evaluation_file("val", "fine", "latest") == "evaluation_val_fine.json"
    assert evaluation_file("val", "fine", "best") == "evaluation_best_val_fine.json"


def test_parts_have_about_equal_numbers_of_frames():
    video = namedtuple("video", "id frames")
    videos = [video(str(k), frames) for k, frames in enumerate([100, 10, 60, 20, 30, 5])]
    parts = balanced(videos, 2)
    assert sorted(one for part in parts for one in part) == sorted(videos)
    assert [sum(one.frames for one in part) for part in parts] == [115, 110]
    assert balanced(videos[:1], 3)[1:] == [[], []]


def test_a_rank_may_wait_longer_than_torch_lets_it_by_default(monkeypatch):
    joined = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda _, timeout: joined.append(timeout)
    )
    distributed.start_evaluation()
    distributed.start()
    assert joined == [timedelta(days=7), None]


@pytest.mark.process
def test_two_ranks_embed_their_parts(run):
    assert evaluate.main(["run"]) == 0
    alone = rows_of()
    shutil.rmtree("run/embeddings")
    processes = launch(evaluate_and_extract, num=2)
    assert wait(processes) == [0, 0], "\n".join(map(said, processes))
    assert rows_of() == alone
    texts = [said(process) for process in processes]
    embedded = [set(json.loads(Path(f"embedded{rank}.json").read_text())) for rank in (0, 1)]
    assert all(embedded)
    assert not embedded[0] & embedded[1]
    assert embedded[0] | embedded[1] == {record.id for record in records()}
    assert "written to run/evaluation.json" in texts[0]
    assert "embedding, rank 0 of 2: 100%" in texts[0]
    assert texts[1] == ""
    assert len([*Path("out").glob("*.npz")]) == len(NAMES)


@pytest.mark.process
def test_an_error_of_one_rank_ends_both_with_one_message(run):
    processes = launch(evaluate_and_extract, num=2, SPOIL="1")
    assert wait(processes) == [2, 2]
    texts = [said(process) for process in processes]
    assert texts[0].count("error:") == 0
    assert texts[1].splitlines()[-1] == "error: the disk of rank 1 is gone"
    assert not Path("run/evaluation.json").exists()


@pytest.mark.process
def test_a_damaged_video_is_left_out_by_both(run):
    Path("videos/test2.mp4").write_bytes(b"no video")
    processes = launch(evaluate_and_extract, num=2, UNCHECKED="1")
    assert wait(processes) == [0, 0], "\n".join(map(said, processes))
    result = json.loads(Path("run/evaluation.json").read_text())
    assert [*result["left_out"]] == ["test2.mp4"]
    assert result["videos"] == {"train": 3, "test": 2}
