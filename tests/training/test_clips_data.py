"""Recipes with clips of several frames: the loader, the caches, made-up batches, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastseq.video import PyAVEngine, SegmentClips, SegmentTuples, write_video
from fastseq.video.tuples import anchors, order_labels
from training.data.dataset import open_items, open_loader
from training.data.index import build_index, load_index
from training.loop.random_batch import random_segments, random_tuples
from training.recipe.load import ConfigError, load_config
from training.train import check_features

SMALL = ["augmentation.size=16", "data.cache_side=20", "data.batch_size=2", "data.engine=pyav"]
CLIPS = {
    "tuples": ["recipes/vclr_demo.yaml", "data.tuple_frames=3", "data.tuple_stride=2"],
    "segments": [
        "recipes/vclr_demo.yaml",
        "loss.vclr.weight=null",
        "loss.action.weight=1",
        "model.encoder=tsn",
        "data.clips=segments",
        "data.segments=4",
        "data.tuple_frames=3",
        "data.tuple_stride=2",
        "augmentation.per_clip=true",
    ],
}
SHAPES = {"tuples": (2, 7, 3), "segments": (2, 4, 3)}


def config(clips, *more):
    recipe, *options = CLIPS[clips]
    return load_config(recipe, [*options, *SMALL, *more])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(0)
    for name, count in {"a": 20, "b": 31, "c": 25}.items():
        frames = generator.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", frames.repeat(8, 1).repeat(8, 2), 25)
    build_index(folder)
    return load_index(folder).videos


@pytest.mark.parametrize("clips", CLIPS)
def test_items_have_the_recipes_options(records, clips):
    cfg = config(clips)
    items = open_items(records, cfg.data, augmentation(cfg))
    assert type(items) is {"tuples": SegmentTuples, "segments": SegmentClips}[clips]
    assert (items.segments, items.clip_frames, items.stride) == (cfg.data.segments, 3, 2)
    assert items.side == 20


def augmentation(cfg):
    from omegaconf import OmegaConf

    return OmegaConf.to_object(cfg.augmentation)


@pytest.mark.parametrize("clips", CLIPS)
def test_frames_in_memory_and_on_disk_are_the_same(records, clips):
    memory, disk = (
        open_loader(records, cfg.data, augmentation(cfg), 3, progress=False)[0]
        for cfg in (config(clips, f"data.cache={cache}") for cache in ("ram", "none"))
    )
    disk.engine = PyAVEngine(16, scale_first=True)
    for one, other in zip(memory.stream(3), disk.stream(3), strict=True):
        assert one["frames"].shape == (*SHAPES[clips], 3, 16, 16)
        assert torch.equal(one["steps"], other["steps"])
        assert torch.equal(one["frames"], other["frames"])


@pytest.mark.parametrize(
    ("clips", "made"), [("tuples", random_tuples), ("segments", random_segments)]
)
def test_random_batches_have_the_loaders_form(records, clips, made):
    cfg = config(clips)
    (batch, random) = (
        next(open_loader(records, cfg.data, augmentation(cfg), 3)[0].stream(1)),
        made(cfg, 2),
    )
    assert random.keys() == batch.keys() - {"times", "lengths"}
    for key in ("frames", "steps", "valid", "num_frames"):
        assert random[key].shape == batch[key].shape, key
        assert random[key].dtype == batch[key].dtype, key
    assert (random["steps"].diff(dim=-1) == 2).all()
    assert random["steps"].max() < random["num_frames"].min()
    if clips == "tuples":
        assert order_labels(random["steps"]).tolist() == [0, 0]
        assert anchors(random["steps"]).tolist() == [0, 0]
        assert torch.equal(random["steps"][:, 0], random["steps"][:, -1])
        starts = random["steps"][0, :6, 0].tolist()
        assert len(set(starts)) == 6


@pytest.mark.parametrize("clips", CLIPS)
def test_stored_features_and_parts_of_clips_are_refused(clips):
    frozen = SimpleNamespace(backbone=SimpleNamespace(all_frozen=True))
    with pytest.raises(ConfigError, match=r"data\.cache=features keeps .* set data\.cache=none"):
        check_features(config(clips, "data.cache=features", "model.train_from=none"), frozen)
    with pytest.raises(ConfigError, match=r"data\.split_time: got 2, but loss\.\w+ compares whole"):
        config(clips, "data.split_time=2")
