"""The files in RUN/embeddings: damaged, replaced, not writable, and shared by two ranks."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_runs import made, new_file, records, rows_of
from processes import launch, said, wait
from test_left_out import NAMES
from two_ranks import evaluate_and_extract

from training import evaluate, train
from training.data.index import build_index
from training.evaluation import stored
from training.evaluation.encoders import BACKBONE, BACKBONE_CENTRED, TRAINED
from training.evaluation.stored import RunEmbeddings, run_embeddings
from training.evaluation.stored_files import balanced
from training.runs.folder import evaluation_file
from training.runs.model import load_run
from training.support import distributed
from training.support.command import LeftOut, UserError


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
