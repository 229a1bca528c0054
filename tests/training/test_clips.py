"""Clips of whole videos, pairs of videos, and frames with their context."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import PLAIN, config
from torch.utils.data import DataLoader

from fastseq.video import Augmentation, write_video
from training.data.dataset import PairDataset, TwoViewDataset, collate
from training.data.index import VideoRecord
from training.data.sampling import context_frames, sample_clip
from training.run import load_run
from training.runlog import read_log
from training.train import main

LENGTHS = {"a": 30, "b": 24, "c": 9, "d": 20, "alone": 26}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Videos whose frame t is grey of level 8 t; two actions, and one that has a single video."""
    folder = tmp_path_factory.mktemp("grey")
    actions = {"a": "swing", "b": "swing", "c": "swing", "d": "pour", "alone": "wave", "e": "pour"}
    out = []
    for name, frames in [*LENGTHS.items(), ("e", 14)]:
        levels = 8 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
        write_video(folder / f"{name}.mp4", np.broadcast_to(levels, (frames, 32, 32, 3)), 25)
        path = str(folder / f"{name}.mp4")
        out.append(VideoRecord(name, path, frames, 25.0, action=actions[name], width=32, height=32))
    return out


def draw(strategy, num_frames, T, seed=0, **options):
    return sample_clip(num_frames, T, np.random.default_rng(seed), strategy=strategy, **options)


@pytest.mark.parametrize("num_frames", [20, 23, 39, 200])
def test_segments_give_one_frame_of_each_chunk(num_frames):
    seen = [set() for _ in range(20)]
    for seed in range(400):
        frames, valid = draw("segment", num_frames, 20, seed)
        assert frames.dtype == np.int64
        assert valid.all()
        for chunk, frame in enumerate(frames):
            seen[chunk].add(int(frame))
    # The chunks are the video, in order, and of nearly equal length.
    assert [frame for chunk in seen for frame in sorted(chunk)] == list(range(num_frames))
    sizes = {len(chunk) for chunk in seen}
    assert sizes <= {num_frames // 20, -(-num_frames // 20)}


def test_offset_uniform_draws_every_subset_alike():
    counts = np.zeros(7)
    for seed in range(700):
        frames, valid = draw("offset_uniform", 7, 3, seed)
        assert valid.all()
        assert (np.diff(frames) > 0).all()
        counts[frames] += 1
    assert (abs(counts - 300) < 60).all()  # 3 of 7: 300 +- 13


def test_positives_are_a_little_earlier_than_their_anchors():
    gaps = set()
    for seed in range(200):
        frames, valid = draw("anchors", 50, 8, seed, positive_window=3)
        anchors, positives = frames[0::2], frames[1::2]
        assert valid.all()
        assert (np.diff(anchors) > 0).all()
        assert (positives >= 0).all()
        gaps |= set((anchors - positives)[anchors >= 3].tolist())
    assert gaps == {1, 2, 3}


@pytest.mark.parametrize("strategy", ["segment", "offset_uniform", "anchors"])
def test_short_videos_are_taken_whole_and_padded(strategy):
    frames, valid = draw(strategy, 3, 8)
    if strategy == "anchors":
        assert frames[0:6:2].tolist() == [0, 1, 2]
        assert valid.tolist() == [True] * 6 + [False] * 2
    else:
        assert frames.tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
        assert valid.tolist() == [True] * 3 + [False] * 5


def test_sampling_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="T = 7 is odd"):
        draw("anchors", 50, 7)
    with pytest.raises(ValueError, match="sampling must be one of"):
        draw("stride", 50, 8)
    with pytest.raises(ValueError, match="a video of 0"):
        draw("segment", 0, 8)


def test_context_is_past_frames_clamped_at_the_first():
    frames = context_frames(np.array([0, 10, 40]), 3, 15)
    assert frames.tolist() == [[0, 0, 0], [0, 0, 10], [10, 25, 40]]
    assert context_frames(np.array([[7]]), 1, 15).tolist() == [[[7]]]


def pairs(records, seed=0, augmentation=PLAIN, **changes):
    changes = {"sampling": "segment", "num_frames": 10} | changes
    return PairDataset(records, config(**changes), augmentation, seed, progress=False)


def test_pairs_are_two_videos_of_one_action(records):
    data = pairs(records)
    assert data.left_out == [("alone", "the only video of action 'wave', pairs need two")]
    assert len(data) == 5
    actions = {record.id: record.action for record in records}
    frames = {record.id: record.frames for record in records}
    partners = {record.id: set() for record in data.records}
    for epoch in range(20):
        data.set_epoch(epoch)
        for index, record in enumerate(data.records):
            item = data[index]
            first, second = item["id"].split(" with ")
            assert first == record.id != second
            assert actions[first] == actions[second]
            assert item["num_frames"].tolist() == [frames[first], frames[second]]
            partners[first].add(second)
    swings = {"a", "b", "c"}
    expected = {name: swings - {name} for name in swings} | {"d": {"e"}, "e": {"d"}}
    assert partners == expected


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_items_show_the_frames_they_name(records, cache):
    data = pairs(records, cache=cache)
    for index in range(len(data)):
        item = data[index]
        assert item["frames"].shape == (2, 10, 3, 16, 16)
        level = item["frames"].float().mean((2, 3, 4))
        assert (level - 8 * item["steps"]).abs().max() < 4
        assert (item["steps"] < item["num_frames"][:, None]).all()
        assert item["valid"].sum(1).tolist() == item["num_frames"].clamp(max=10).tolist()
    batch = collate([data[0], data[3]])
    assert batch["num_frames"].shape == (2, 2)
    assert batch["steps"].shape == (2, 2, 10)


@pytest.mark.parametrize("dataset", [PairDataset, TwoViewDataset])
def test_context_frames_come_with_each_frame(records, dataset):
    options = config(sampling="segment", num_frames=6, num_context=3, context_stride=4)
    data = dataset(records, options, PLAIN, 0)
    item = data[0]
    assert item["frames"].shape == (2, 6, 3, 3, 16, 16)
    level = item["frames"].float().mean((3, 4, 5))
    expected = (item["steps"][..., None] - torch.tensor([8, 4, 0])).clamp(min=0)
    assert (level - 8 * expected).abs().max() < 4


def test_items_depend_on_seed_epoch_and_index_alone(records):
    spec = Augmentation(size=16)
    one, two = pairs(records, 3, spec), pairs(records, 3, spec)
    for epoch in (1, 0):
        one.set_epoch(epoch)
        [one[index] for index in range(len(one))]
    two.set_epoch(0)
    for index in (4, 0, 2):
        a, b = one[index], two[index]
        assert a["id"] == b["id"]
        assert torch.equal(a["frames"], b["frames"])
        assert torch.equal(a["steps"], b["steps"])
    two.set_epoch(1)
    assert not torch.equal(two[0]["steps"], one[0]["steps"])
    assert not torch.equal(pairs(records, 4, spec)[0]["steps"], one[0]["steps"])


def test_workers_do_not_change_the_pairs(records):
    passes = []
    for workers in (0, 2):
        data = pairs(records, 5, Augmentation(size=16))
        data.set_epoch(2)
        passes.append([*DataLoader(data, 2, num_workers=workers, collate_fn=data.collate)])
    for one, two in zip(*passes, strict=True):
        assert one["ids"] == two["ids"]
        for key in ("frames", "steps", "valid", "num_frames"):
            assert torch.equal(one[key], two[key])


def test_a_bad_video_is_replaced_also_as_the_partner(records, tmp_path):
    (tmp_path / "zero.mp4").write_bytes(b"")
    bad = VideoRecord("bad", str(tmp_path / "zero.mp4"), 30, 25.0, action="swing")
    good = [
        VideoRecord(f"{r.id}{n}", r.path, r.frames, r.fps, action=r.action, width=32, height=32)
        for r in records[:3]
        for n in range(40)
    ]
    data = pairs([bad, *good])
    with pytest.warns(RuntimeWarning, match=r"left out bad: .*\(1 of 121 videos\)"):
        first = data[0]
    assert first["id"].startswith("a0 with ")
    # Every epoch in which somebody drew the bad video as a partner now gives a good one.
    for epoch in range(3):
        data.set_epoch(epoch)
        assert not any("bad" in data[index]["id"] for index in range(0, len(data), 7))
    partner = pairs([bad, *good])
    found = next(
        (epoch, index)
        for epoch in range(200)
        for index in range(1, 9)
        if np.random.default_rng([0, epoch, index]).integers(120) == 0
    )
    partner.set_epoch(found[0])
    with pytest.warns(RuntimeWarning, match="left out bad"):
        item = partner[found[1]]
    assert item["id"].startswith(partner.records[found[1]].id)
    assert "bad" not in item["id"]


def test_no_pairs_at_all():
    record = SimpleNamespace(id="a", action="wave", frames=20)
    with pytest.raises(ValueError, match="each of the 1 videos is the only one of its action"):
        PairDataset([record], config(sampling="segment"), PLAIN, 0)


def test_training_on_pairs_says_what_is_left_out(video_folder, capsys, caplog):
    options = ["data.clips=videos", "data.sampling=segment", "loss.lav.weight=1"]
    arguments = ["tiny.yaml", "train.steps=2", "train.log_every=1", *options]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 pairs x 2 videos x 8 frames = 32 frames of 16 px" in capsys.readouterr().out
    assert main([*arguments, "train.run_dir=run"]) == 0
    context = ["model.encoder=conv3d", "model.conv3d_size=8", "data.num_context=2"]
    with caplog.at_level("WARNING"):
        assert main([*arguments, *context, "train.run_dir=conv", "--dry-run"]) == 0
    assert "x 8 frames x 2 with context = 64 frames" in capsys.readouterr().out
    assert main([*arguments, *context, "train.run_dir=conv"]) == 0


@pytest.mark.parametrize("name", ["lav", "tcc", "tcn", "lav_tcc"])
@pytest.mark.parametrize("encoder", ["conv3d", "fve"])
def test_recipes_train(video_folder, name, encoder):
    small = ["model.backbone=small_cnn", "model.train_from=all", "augmentation.size=16"]
    small += ["data.num_frames=8", "data.cache_side=18", "data.workers=0", "data.batch_size=2"]
    small += ["model.conv3d_size=8", "train.epochs=null", "train.steps=2", "train.log_every=1"]
    if encoder == "fve":
        small += ["model.encoder=fve", "data.num_context=1"]
    folder = [f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([f"recipes/{name}.yaml", *folder, *small]) == 0
    first, last = read_log("run")
    assert np.isfinite([first["loss"], last["loss"]]).all()
    trained, initial = load_run("run")[0], load_run("run", untrained=True)[0]
    moved = [
        key
        for key, value in trained.named_parameters()
        if not torch.equal(value, dict(initial.named_parameters())[key])
    ]
    assert any(key.startswith("backbone") for key in moved)
    assert any(key.startswith("embedding") for key in moved)
    assert not any(key.startswith("projection") for key in moved)  # in no loss
    assert trained.encode(torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8)).shape == (1, 5, 128)
