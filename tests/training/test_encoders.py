"""Encoders of a run: one pass of a backbone for all rows, and the rows of the backbone alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastseq.video import PyAVEngine, read_frames
from fastseq.video.augment import eval_transform
from training import evaluate, train
from training.data.index import load_index
from training.evaluation.embed import embed_records, features_each
from training.evaluation.encoders import (
    BACKBONE,
    BACKBONE_CENTRED,
    ROW_DEFINITIONS,
    Encoder,
    load_compared_encoders,
    row_definitions,
)
from training.models import VideoEncoder
from training.runs.model import initial_model

ROWS = ["untrained", "trained", "untrained, positions off", "trained, positions off"]
VCLR = ["model.encoder=vclr", "loss.vclr.weight=1", "data.clips=tuples", "loss.vclr.queue_size=8"]
FROZEN = ["model.train_from=none", "model.random_frozen=true", "data.cache_side=32"]


@pytest.fixture
def records(video_folder):
    return load_index(video_folder).videos


def trained(*options: str) -> tuple[dict, object]:
    options = ["train.run_dir=run", "train.steps=1", "train.log_every=1", *options]
    assert train.main(["tiny.yaml", *options, "train.chunk_frames=0"]) == 0
    return load_compared_encoders("run")


def weights_file(*options: str) -> str:
    """Backbone weights of another seed, as a file."""
    from training.recipe.load import load_config

    backbone = initial_model(load_config("tiny.yaml", ["train.seed=7", *options])).backbone
    torch.save(backbone.state_dict(), "backbone.pt")
    return "model.weights=backbone.pt"


@pytest.fixture
def passes(monkeypatch):
    """Frames that have gone through a backbone, call by call; and the videos decoded."""
    calls, per_frame = [], VideoEncoder._per_frame

    def count(self, frames, *arguments, **options):
        calls.append(len(frames))
        return per_frame(self, frames, *arguments, **options)

    monkeypatch.setattr(VideoEncoder, "_per_frame", count)
    return calls


def test_a_frozen_backbone_runs_once_for_all_rows(records, passes):
    encoders, cfg = trained(*FROZEN, weights_file(*FROZEN))
    assert [*encoders] == [BACKBONE, BACKBONE_CENTRED, *ROWS]
    assert {*encoders} <= {*ROW_DEFINITIONS}
    passes.clear()
    made = embed_records(encoders, records, cfg, progress=False)
    assert passes == [30, 12, 6]
    frames = eval_transform(read_frames(records[0].path), 16)[None]
    model = initial_model(cfg).eval()
    with torch.no_grad():
        features = model.features(frames)[0]
        unit = torch.nn.functional.normalize(features, dim=1)
        centred = torch.nn.functional.normalize(features - features.mean(0), dim=1)
        untrained = torch.nn.functional.normalize(model.encode(frames)[0], dim=1)
    for name, expected in [
        (BACKBONE, unit),
        (BACKBONE_CENTRED, centred),
        ("untrained", untrained),
    ]:
        np.testing.assert_allclose(made[name][0].embeddings, expected, rtol=1e-3, atol=1e-4)


def test_a_trained_backbone_runs_twice(records, passes):
    encoders, cfg = trained()
    assert [*encoders] == ROWS  # without weights no backbone alone
    passes.clear()
    made = embed_records(encoders, records, cfg, progress=False)
    assert passes == [30, 30, 12, 12, 6, 6]
    assert not np.array_equal(made["untrained"][0].embeddings, made["trained"][0].embeddings)


def test_encoders_of_frames_get_frames(records, passes):
    encoders, cfg = trained("model.encoder=conv3d", "data.num_context=2", weights_file())
    assert [*encoders] == [BACKBONE, BACKBONE_CENTRED, "untrained", "trained"]
    for record, taken in features_each(encoders, records, cfg, progress=False):
        assert taken["trained"] is taken["untrained"]
        assert taken["trained"].shape == (1, record.frames, 3, 16, 16)
        assert taken[BACKBONE].shape[:2] == (1, record.frames)


def test_vclr_is_compared_with_its_backbone(video_folder, passes):
    Path("videos/labels.json").write_text(
        '{"videos": {"a.mp4": {"action": "x"}, "b.mp4": {"action": "y"},'
        ' "c.mp4": {"action": "x", "split": "test"}}}'
    )
    from training.data.index import build_index

    records = build_index("videos").videos
    encoders, cfg = trained(*VCLR, weights_file(*VCLR))
    made = embed_records(encoders, records, cfg, progress=False)
    np.testing.assert_array_equal(made[BACKBONE][0].embeddings, made["untrained"][0].embeddings)
    passes.clear()
    assert evaluate.main(["run", "--protocol", "vclr"]) == 0
    assert len(passes) == 6  # three videos, by the untrained and by the trained backbone


def test_a_video_is_decoded_once(records, monkeypatch):
    opened, read = [], PyAVEngine.read

    def count(self, readings):
        opened.extend(reading.path for reading in readings)
        return read(self, readings)

    from training.recipe.load import load_config

    monkeypatch.setattr(PyAVEngine, "read", count)
    shared = torch.nn.Flatten(2)
    encoders = {
        "frames": Encoder(None, lambda x: x.float().mean((2, 3, 4))[..., None] + 1),
        "one": Encoder(shared, lambda x: x[..., :4].float() + 1),
        "two": Encoder(shared, lambda x: x[..., :1].float() + 1),
    }
    cfg = load_config("tiny.yaml")
    made = embed_records(encoders, records, cfg, progress=False)
    assert opened == [record.path for record in records]
    assert [video.embeddings.shape for video in made["one"]] == [(30, 4), (12, 4), (6, 4)]
    encoders = {"short": Encoder(None, lambda x: x[:, 1:].float().mean((3, 4)))}
    with pytest.raises(
        ValueError, match=r"'short' returned 29 embeddings for the 30 frames of a\.mp4"
    ):
        embed_records(encoders, records, cfg, progress=False)


def test_a_share_of_the_backbone_weighs_similarities(records):
    options = [*FROZEN, "model.centre=true", weights_file(*FROZEN)]
    alone, cfg = trained(*options)
    made = embed_records(alone, records, cfg, progress=False)
    with_share, cfg = trained(*options, "model.backbone_share=0.7", "--overwrite")
    for name, videos in embed_records(with_share, records, cfg, progress=False).items():
        for place, video in enumerate(videos):
            similar = {key: made[key][place].embeddings for key in (name, BACKBONE_CENTRED)}
            similar = {key: x @ x.T for key, x in similar.items()}
            expected = similar[name]  # of the backbone's own rows
            if name in ROWS:
                expected = 0.3 * similar[name] + 0.7 * similar[BACKBONE_CENTRED]
            np.testing.assert_allclose(video.embeddings @ video.embeddings.T, expected, atol=1e-5)


def test_rows_say_what_is_the_backbone_s():
    definitions = row_definitions([BACKBONE, "trained"], 0.7)
    assert "0.7 of the squared length" in definitions["trained"]
    assert definitions[BACKBONE] == ROW_DEFINITIONS[BACKBONE]
    assert row_definitions(["trained"], 0) == {"trained": ROW_DEFINITIONS["trained"]}
