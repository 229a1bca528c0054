"""DPC: its blocks, its network and its loss from their definitions, and its training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dpc_cases import RECIPE, blocks
from dpc_cases import main as ranks_main
from processes import launch, said, wait
from runs import numbers, same, weights
from steps import Killed, stopped_at

import training.train
from fastseq.video import Augmentation, ConsecutiveBlocks
from training.data.index import build_index
from training.loop.dpc_step import dense_nce
from training.models.dpc import DPCModel
from training.models.small_cnn3d import SmallCNN3d
from training.recipe.load import load_config
from training.runs.log import read_lines, read_log
from training.runs.model import initial_model, load_run
from training.train import main


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "training_loader", blocks)
    return "tiny.yaml"


def video(frames: int, name: str = "a"):
    @dataclasses.dataclass
    class Video:
        id: str = name
        path: str = name
        action: str = ""
        frames: int = 0
        fps: float = 25.0
        width: int = 24
        height: int = 16

    return Video(frames=frames)


def test_blocks_follow_each_other():
    items = ConsecutiveBlocks([video(50)], Augmentation(), blocks=4, block_frames=3, stride=4)
    starts = set()
    for index in range(60):
        item = items.item(0, 0, index)
        assert item.steps.shape == item.valid.shape == item.times.shape == (4, 3)
        assert (np.diff(item.steps.flatten()) == 4).all()
        assert item.steps.min() >= 0
        assert item.steps.max() < 50
        clips = item.readings[0].clips
        assert (np.stack([clip.frames for clip in clips]) == item.steps).all()
        assert len({id(clip.draw) for clip in clips}) == 1
        assert item.valid.all()
        assert item.num_frames.tolist() == [50] * 4
        np.testing.assert_allclose(item.times, item.steps / 25)
        starts.add(int(item.steps[0, 0]))
    assert starts == set(range(50 - 44))  # the blocks span 45 frames


def test_short_videos_are_left_out_with_a_reason():
    options = {"blocks": 4, "block_frames": 3, "stride": 4}
    items = ConsecutiveBlocks([video(44, "short"), video(45, "long")], Augmentation(), **options)
    assert [one.id for one in items.videos] == ["long"]
    assert items.left_out == [("short", "has 44 frames, 4 blocks of 3 frames need 45")]
    with pytest.raises(ValueError, match="all 1 videos are too short: 4 blocks of 3 frames need"):
        ConsecutiveBlocks([video(44)], Augmentation(), **options)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        ConsecutiveBlocks([video(44)], Augmentation(), blocks=0)


def sines(shape, shift: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return 0.7 * torch.sin(shift + torch.arange(count, dtype=torch.float64) ** 1.5).view(shape)


def test_values_of_the_released_code():
    """Sum of the predictions, loss and accuracy of DPC_RNN (commit 4fe45e3) in eval mode."""
    backbone = SmallCNN3d(16)
    backbone.out_channels = 4
    options = {"dropout": 0.1, "chunk_frames": 0, "checkpointing": False}
    model = DPCModel(backbone, predict=2, **options).double().eval()
    cell, predictor = model.cell, model.predictor
    layers = (cell.update, cell.reset, cell.candidate, predictor[0], predictor[2])
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(sines(parameter.shape, number))
        maps = 2 * sines((2, 5, 4, 2, 2), 99)
        predicted = model.predictions(maps[:, :3])
        loss, accuracy = dense_nce(predicted, maps[:, 3:])
    assert predicted.sum().item() == pytest.approx(-8.272524083115954, rel=1e-12)
    assert loss.item() == pytest.approx(3.1403362093749068, rel=1e-12)
    assert accuracy.item() == 0.0625


def test_dense_nce_from_its_definition():
    predicted, actual = (sines((2, 2, 5, 2, 2), k).requires_grad_() for k in (0, 7))
    loss, accuracy = dense_nce(predicted, actual)
    places = [(n, p, i, j) for n in range(2) for p in range(2) for i in range(2) for j in range(2)]
    terms, hits = [], 0
    for n, p, i, j in places:
        row = predicted[n, p, :, i, j]
        scores = torch.stack([row @ actual[m, q, :, k, r] for m, q, k, r in places])
        own = places.index((n, p, i, j))
        terms.append(scores.exp().sum().log() - scores[own])
        hits += int(scores.argmax() == own)
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert accuracy.item() == hits / len(places)
    inputs = (predicted, actual)
    for got, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


def test_first_step_from_the_parts_of_the_model(recipe):
    options = ["train.steps=1", "train.log_every=1", "loss.dpc.dropout=0", "loss.dpc.weight=2"]
    assert main([recipe, "train.run_dir=run", "optim.name=sgd", *options]) == 0
    model, cfg = load_run("run", untrained=True)
    frames = next(blocks(cfg).stream(1))["frames"]
    model.train()
    rows = model._normalise(frames.flatten(0, 1))
    maps = model.backbone.maps(rows).mean(2).view(4, 5, 16, 2, 2)
    state = torch.zeros(4, 16, 2, 2)
    for block in range(3):
        state = model.cell(maps[:, block].relu(), state)
    first = model.predictor(state)
    second = model.predictor(model.cell(first.relu(), state))
    loss, accuracy = dense_nce(torch.stack([first, second], 1), maps[:, 3:])
    line = read_log("run")[0]
    assert line["loss"] == pytest.approx(2 * loss.item(), rel=1e-4)
    assert line["accuracy"] == pytest.approx(accuracy.item())
    (2 * loss).backward()
    after = weights("run")
    for name, parameter in model.named_parameters():
        before = parameter.detach()
        expected = before - 0.01 * (parameter.grad + 1e-5 * before)  # with weight decay
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_whole_videos_are_encoded_by_the_backbone(recipe):
    model = initial_model(load_config(recipe)).eval()
    frames = torch.randint(0, 256, (1, 9, 3, 16, 16)).to(torch.uint8)
    with torch.no_grad():
        features = model.encode(frames)
        clip = frames[:, [0, 2, 4, 6]][:, None]  # frame 4 has place 4 // 2
        torch.testing.assert_close(features[0, 4], model.clip_features(clip)[0, 0])
    assert features.shape == (1, 9, 16 * 2 * 2)


def test_resumed_run_equals_the_uninterrupted_one(recipe):
    assert main([recipe, "train.run_dir=whole"]) == 0

    with stopped_at(9), pytest.raises(Killed):
        main([recipe, "train.run_dir=parts"])
    torch.rand(7)
    assert main([recipe, "train.run_dir=parts", "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")


def test_the_loss_falls_on_a_small_set(recipe):
    assert main([recipe, "train.run_dir=run", "train.steps=60", "train.log_every=10"]) == 0
    first, *_, last = read_log("run")
    assert last["loss"] < 0.8 * first["loss"]
    assert last["accuracy"] > first["accuracy"]


@pytest.mark.process
def test_two_ranks_train_as_one(tmp_path, monkeypatch):
    """Losses and weights after two steps: negatives come from the videos of both ranks."""
    monkeypatch.chdir(tmp_path)
    for num in (1, 2):
        processes = launch(ranks_main, tmp_path, num=num)
        assert wait(processes) == [0] * num, said(processes[0])
    one, *two = (torch.load(tmp_path / f"ranks{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for rank in two:
        np.testing.assert_allclose(rank["loss"], one["loss"], rtol=1e-9)
        for a, b in zip(rank["losses"], one["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-9)
        for key, value in one["state"].items():
            torch.testing.assert_close(rank["state"][key], value, rtol=1e-8, atol=1e-11, msg=key)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.clips=views", "loss.dpc needs data.clips=blocks, got views"),
        ("model.encoder=fve", "loss.dpc needs model.encoder=dpc, got fve"),
        ("loss.scl.weight=1", "loss.dpc cannot be combined with loss.scl"),
        ("model.backbone=resnet18", "loss.dpc needs a network of clips: model.backbone must be"),
        ("loss.dpc.predict=5", "them, so data.segments must be at least 6, got 5"),
        ("data.num_context=2", "data.clips=blocks has no context frames, expected 1"),
        ("data.cache=features", "data.clips=blocks reads clips: set data.cache=none or ram"),
    ],
)
def test_options_that_do_not_fit(recipe, override, message, capsys):
    assert main([recipe, override]) == 2
    assert message in capsys.readouterr().err


def test_other_losses_do_not_read_blocks(recipe, capsys):
    assert main([recipe, "loss.dpc.weight=0", "loss.scl.weight=1"]) == 2
    assert "data.clips=blocks works only with loss.dpc, got loss.scl" in capsys.readouterr().err


def test_the_recipe_trains_on_files(video_folder, monkeypatch, capsys):
    """It is evaluated by the videos' actions, which need no phase labels."""
    actions = {"a.mp4": "pour", "b.mp4": "swing", "c.mp4": "pour"}
    labels = {"videos": {name: {"action": action} for name, action in actions.items()}}
    labels["videos"]["c.mp4"]["split"] = "test"
    (video_folder / "labels.json").write_text(json.dumps(labels))
    build_index(video_folder)
    small = ["model.backbone=small_cnn3d", "augmentation.size=32", "data.cache_side=36"]
    small += ["data.batch_size=2", "data.workers=0", "data.engine=pyav", "data.segments=4"]
    small += ["data.tuple_frames=2", "data.tuple_stride=1", "train.epochs=null", "train.steps=2"]
    small += ["train.log_every=1", "train.precision=fp32"]
    arguments = ["recipes/dpc.yaml", f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([*arguments, *small, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 videos x 4 consecutive blocks of 2 frames = 16 frames of 32 px" in out
    assert main([*arguments, *small, "train.evaluate_every=2", "train.keep_best=linear_svm"]) == 0
    assert all(line["loss"] > 0 for line in read_log("run"))
    lines = read_lines(Path("run/evaluations.jsonl"))
    assert [line["step"] for line in lines] == [0, 2]
    assert all({*line["metrics"]} == {"linear_svm", "recall_at_1"} for line in lines)
