"""Stored features of a frozen backbone: their values, when they are recomputed, which commands read
them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import same, weights

from fastseq.video import PyAVEngine, VideoError, read_frames
from fastseq.video.augment import apply_draw, draw_clip, eval_transform
from fastseq.video.gaps import frames_of
from training import extract, train
from training.data import features
from training.data.dataset import open_loader
from training.data.features import FOLDER_NAME, FeatureEngine, FeatureStore
from training.data.index import build_index, load_index
from training.evaluation.embed import embed_records
from training.evaluation.encoders import load_encoder, make_encoder
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.support.command import LeftOut, UserError

FROZEN = ["model.train_from=none", "model.random_frozen=true", "data.cache=features"]


@pytest.fixture
def cfg(video_folder):
    cfg = load_config("tiny.yaml", [*FROZEN, "data.cache_side=32"])
    cfg.data.folder = str(video_folder)
    return cfg


@pytest.fixture
def records(cfg):
    return load_index(cfg.data.folder).videos


@pytest.fixture
def store(cfg):
    return FeatureStore(Path(cfg.data.folder), initial_model(cfg), cfg)


def files(cfg) -> list[str]:
    folder = Path(cfg.data.folder, FOLDER_NAME)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.npy"))


def counted(model) -> list[int]:
    """Records the frames of each call of a model's `features`."""
    calls, made = [], model.features

    def count(frames):
        calls.append(frames.shape[1])
        return made(frames)

    model.features = count
    return calls


def loader_of(records, cfg, store, **options):
    augmentation = OmegaConf.to_object(cfg.augmentation)
    return open_loader(records, cfg.data, augmentation, 0, store=store, progress=False, **options)[
        0
    ]


# --- the store ----------------------------------------------------------------------------------


def test_stored_features_are_those_of_the_frames(cfg, records, store):
    assert store.encoder.training
    assert store.fill(records, progress=False) == []
    assert store.encoder.training
    encoder = store.encoder.eval()
    for record in records:
        pixels = eval_transform(read_frames(record.path), 16)
        with torch.no_grad():
            expected = encoder.features(pixels[None])[0].numpy()
        found = store.get(record)
        assert isinstance(found, np.memmap)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    load_index(cfg.data.folder)  # not out of date: hidden files do not count as videos


def test_embeddings_are_the_same_bits_with_and_without_the_store(cfg, records, store):
    model = store.encoder.eval()
    encoders = {"frames": make_encoder(model), "stored": make_encoder(model, store=store)}
    assert encoders["frames"].store is None
    made = {
        name: embed_records({name: encoder}, records, cfg, progress=False)[name]
        for name, encoder in encoders.items()
    }
    assert len(files(cfg)) == 3
    for one, other in zip(made["frames"], made["stored"], strict=True):
        np.testing.assert_array_equal(one.embeddings, other.embeddings)


def test_a_fill_goes_on_where_it_was_interrupted(cfg, records, store, monkeypatch):
    made = store.encoder.features

    def interrupted(frames):
        if frames.shape[1] == 12:
            raise KeyboardInterrupt
        return made(frames)

    monkeypatch.setattr(store.encoder, "features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.fill(records, progress=False)
    assert len(files(cfg)) == 1
    monkeypatch.undo()
    again = FeatureStore(Path(cfg.data.folder), store.encoder, cfg)
    calls = counted(store.encoder)
    again.fill(records, progress=False)
    assert calls == [12, 6]
    again.fill(records, progress=False)
    assert calls == [12, 6]


def test_what_has_changed_is_computed_again(cfg, records, store):
    store.fill(records, progress=False)
    calls = counted(store.encoder)
    before = files(cfg)
    os.utime(records[0].path, ns=(0, 10**18))
    store.fill(records, progress=False)
    assert calls == [30]
    after = files(cfg)
    assert len(after) == 3  # the old file is gone
    assert len({*after} & {*before}) == 2
    shutil.copy(Path(cfg.data.folder, "b.mp4"), Path(cfg.data.folder, "a.mp4"))
    Path(cfg.data.folder, "labels.json").write_text('{"videos": {"b.mp4": {"trim": [2, 8]}}}')
    changed = build_index(cfg.data.folder).videos
    store.fill(changed, progress=False)
    assert calls == [30, 12, 7]
    assert store.get(changed[1]).shape == (7, store.size)
    assert len(files(cfg)) == 3


def test_a_video_that_is_replaced_while_it_is_read_is_computed_again(cfg, records, store):
    features = store.encoder.features

    def replaced(frames):
        if frames.shape[1] == records[0].frames:
            os.utime(records[0].path, ns=(0, 10**18))
        return features(frames)

    store.encoder.features = replaced
    store.fill(records, progress=False)
    store.encoder.features = features
    calls = counted(store.encoder)
    store.fill(records, progress=False)
    assert calls == [records[0].frames]
    assert len(files(cfg)) == 3


def test_other_weights_sizes_and_draws_have_folders_of_their_own(cfg, records, store):
    folders = {store.path(records[0], draw).parent for draw in (0, 1, 2)}
    for key, value in [("train.seed", 1), ("augmentation.size", 32), ("data.engine", "dali-cpu")]:
        other = OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}"]))
        made = FeatureStore(Path(cfg.data.folder), initial_model(other), other)
        folders.add(made.path(records[0]).parent)
    again = FeatureStore(Path(cfg.data.folder), initial_model(cfg), cfg)
    assert again.path(records[0]).parent in folders
    assert len(folders) == 6
    store.fill(records[:1], progress=False)
    assert '"backbone": "small_cnn"' in (store.path(records[0]).parent / "about.json").read_text()


def test_a_damaged_or_missing_file_is_no_features(cfg, records, store):
    with pytest.raises(KeyError, match=r"a\.mp4"):
        store.get(records[0])
    store.fill(records, progress=False)
    store.path(records[0]).write_bytes(store.path(records[0]).read_bytes()[:200])
    with pytest.raises(KeyError, match=r"a\.mp4"):
        store.get(records[0])
    np.save(store.path(records[1]), np.zeros((12, 3), np.float32))
    calls = counted(store.encoder)
    store.fill(records, progress=False)
    assert calls == [30, 12]


def test_draws_are_one_augmentation_of_the_whole_video(cfg, records, store):
    store.fill(records[:1], (1, 2), progress=False)
    frames, made = read_frames(records[0].path), []
    for draw in (1, 2):
        name = int(features.hashlib.sha256(b"a.mp4").hexdigest()[:16], 16)
        clip = draw_clip(32, 48, store.augmentation, np.random.default_rng([0, draw, name]))
        made.append(store.encoder.eval().features(apply_draw(frames, clip, 16)[None])[0])
        np.testing.assert_allclose(
            store.get(records[0], draw), made[-1].detach(), rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(*made)


def test_no_room_is_said_before_and_nothing_half_written_stays(cfg, records, store, monkeypatch):
    usage = SimpleNamespace(free=2**20)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"needs 0\.\d MiB in .*, but only 1\.0 MiB are free there"):
        store.fill(records, progress=False)
    monkeypatch.undo()

    def full(file, array):
        file.write(b"half")
        raise OSError("900 requested and 4 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"of a\.mp4 cannot be written .* \(the disk is full\)"):
        store.fill(records, progress=False)
    left = [path.name for path in Path(cfg.data.folder, FOLDER_NAME).rglob("*") if path.is_file()]
    assert left == ["about.json"]


def test_videos_that_cannot_be_read_are_named(cfg, records, store):
    Path(records[1].path).write_bytes(b"no video")
    (error,) = store.fill(records, progress=False)
    assert isinstance(error, VideoError)
    assert error.path == records[1].path
    assert len(files(cfg)) == 2
    left_out = LeftOut()
    encoder = make_encoder(store.encoder.eval(), store=store)
    made = embed_records({"it": encoder}, records, cfg, left_out, progress=False)["it"]
    assert [video.record.id for video in made] == ["a.mp4", "c.mp4"]
    assert [*left_out.videos] == ["b.mp4"]
    with pytest.raises(VideoError):
        embed_records({"it": encoder}, records, cfg, progress=False)
    with pytest.warns(RuntimeWarning, match=r"left out b\.mp4"):
        loader = loader_of(records, cfg, store)
    assert [*loader.bad] == [records[1].path]
    assert {name for batch in loader for name in batch["ids"]} <= {"a.mp4", "c.mp4"}


# --- training from it ---------------------------------------------------------------------------


def test_batches_are_rows_of_the_store_and_no_video_is_opened(cfg, records, store, monkeypatch):
    loader = loader_of(records, cfg, store)
    monkeypatch.setattr(PyAVEngine, "read", None)
    by_id = {record.id: record for record in records}
    for batch in loader.stream(4):
        assert batch["frames"].dtype == torch.float32
        assert batch["frames"].shape == (2, 2, 8, store.size)
        for name, clips, steps in zip(batch["ids"], batch["frames"], batch["steps"], strict=True):
            expected = store.get(by_id[name])[steps.numpy()]
            np.testing.assert_array_equal(clips.numpy(), expected)


def test_rows_go_by_the_numbers_of_the_frames(cfg, store):
    Path(cfg.data.folder, "labels.json").write_text('{"videos": {"a.mp4": {"trim": [5, 20]}}}')
    records = build_index(cfg.data.folder).videos[:1]
    loader = loader_of(records, cfg, store)
    (batch,) = loader.stream(1)
    assert frames_of(records[0])[0] == 5
    rows = batch["steps"][0].numpy() - 5
    np.testing.assert_array_equal(batch["frames"][0].numpy(), store.get(records[0])[rows])


def test_the_choice_among_draws_is_a_function_of_the_item(cfg, records, store):
    cfg.data.feature_draws = 3
    loader = loader_of(records, cfg, store)
    assert isinstance(loader.engine, FeatureEngine)
    assert len(files(cfg)) == 9
    batches = [batch["frames"] for batch in loader.stream(6)]
    again = loader_of(records, cfg, store)
    again.position = 4
    assert torch.equal(next(iter(again.stream(5)))["frames"], batches[4])
    used = {
        loader.engine.draw_of(clip)
        for batch in range(6)
        for reading in loader.readings(batch)
        for clip in reading.clips
    }
    assert used == {1, 2, 3}


def test_ranks_share_the_work_and_leave_out_the_same_videos(cfg, records, store, monkeypatch):
    cfg.data.batch_size = 2
    Path(records[1].path).write_bytes(b"no video")
    calls = counted(store.encoder)
    first = loader_of(records, cfg, store, rank=0, world_size=2)
    assert calls == [30, 6]
    with pytest.warns(RuntimeWarning, match="left out b.mp4"):
        second = loader_of(records, cfg, store, rank=1, world_size=2)
    assert calls == [30, 6]
    both = [dict(first.bad), dict(second.bad)]
    monkeypatch.setattr("training.support.distributed.gather_objects", lambda value: both)
    with pytest.warns(RuntimeWarning, match="left out b.mp4"):
        train.share_left_out(first)
    train.share_left_out(second)
    assert [*first.bad] == [*second.bad] == [records[1].path]


def test_a_run_trains_resumes_and_is_evaluated_from_the_store(video_folder, monkeypatch, capfd):
    options = ["tiny.yaml", *FROZEN, "train.steps=6", "train.checkpoint_every=3"]
    options += ["train.keep_checkpoints=9"]
    assert train.main([*options, "train.run_dir=run", "--dry-run"]) == 0
    assert not (video_folder / FOLDER_NAME).exists()
    assert train.main([*options, "train.run_dir=run"]) == 0
    said = capfd.readouterr().err
    assert f"features of 48 frames are computed once: 0.0 MiB in {video_folder}" in said
    shutil.copytree("run", "half")
    Path("half/checkpoints/step_00000006.pt").unlink()
    monkeypatch.setattr(PyAVEngine, "read", None)  # nothing is decoded any more
    assert train.main([*options, "train.run_dir=half", "--resume"]) == 0
    assert same(weights("run"), weights("half"))
    encoder, cfg = load_encoder("run")
    made = embed_records({"it": encoder}, load_index(video_folder).videos, cfg, progress=False)
    assert [len(video.embeddings) for video in made["it"]] == [30, 12, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.train_from=all"], "needs model.train_from=none, got all"),
        (["model.encoder=conv3d"], "needs model.encoder=fve, got conv3d"),
        (
            ["model.encoder=vclr", "loss.vclr.weight=1", "data.clips=tuples"],
            "needs data.clips other than tuples",
        ),
    ],
)
def test_features_that_change_are_not_stored(video_folder, capsys, options, message):
    assert train.main(["tiny.yaml", *FROZEN, "train.run_dir=run", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "or set data.cache=none" in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("run").exists()
    assert not (video_folder / FOLDER_NAME).exists()


def test_saved_embeddings_are_of_one_crop_and_share(video_folder, capsys):
    assert train.main(["tiny.yaml", *FROZEN, "train.steps=2", "train.run_dir=run"]) == 0

    def extracted() -> str:
        assert extract.main(["run", "--out", "saved"]) == 0
        return capsys.readouterr().out

    assert "3 files written" in extracted()
    assert "0 files written to saved, 3 were there already" in extracted()
    labels = {"videos": {"a.mp4": {"crop": [8, 4, 24, 20]}}}
    (video_folder / "labels.json").write_text(json.dumps(labels))
    build_index(video_folder)
    assert "1 file written to saved, 2 were there already" in extracted()
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("backbone_share: 0.0", "backbone_share: 0.5"))
    assert "3 files written" in extracted()
