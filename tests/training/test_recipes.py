"""Recipes train on video files, including pairs of videos and context frames."""

import json

import numpy as np
import pytest
import torch

from training.data.index import build_index
from training.runs.log import read_log
from training.runs.model import load_run
from training.train import main, training_loader


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


BOTH_ENCODERS = [(n, e) for n in ("lav", "tcc", "tcn", "lav_tcc") for e in ("conv3d", "fve")]
AS_RELEASED = [("gta", "conv3d"), ("ae2", "conv3d"), ("vava", "conv3d"), ("lrprop", "fve")]


@pytest.mark.parametrize(("name", "encoder"), [*BOTH_ENCODERS, *AS_RELEASED])
def test_recipes_train(video_folder, name, encoder):
    small = ["model.backbone=small_cnn", "model.train_from=all", "augmentation.size=16"]
    small += ["data.num_frames=8", "data.cache_side=18", "data.workers=0", "data.batch_size=2"]
    small += [
        "data.engine=pyav",
        "model.conv3d_size=8",
        "model.fc_size=16",
        "model.hidden_size=16",
        "model.ff_size=32",
        "train.epochs=null",
        "train.steps=2",
        "train.log_every=1",
    ]
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
    assert not any(key.startswith("projection") for key in moved)  # not used by any loss
    assert trained.encode(torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8)).shape == (1, 5, 128)


def test_pairs_of_all_clips_stay_within_an_action(video_folder, capsys):
    """The loader passes the action of each item to the loss; items with mixed actions are not
    compared.
    """
    labels = {"a.mp4": "swing", "b.mp4": "swing", "c.mp4": "pour"}
    entries = {name: {"action": action} for name, action in labels.items()}
    (video_folder / "labels.json").write_text(json.dumps({"videos": entries}))
    build_index(video_folder)
    arguments = ["tiny.yaml", "data.batch_size=3", "train.steps=1", "loss.tcc.weight=1"]
    arguments += ["data.sampling=offset_uniform", "loss.tcc.normalize=true", "model.dropout=0"]
    assert main([*arguments, "loss.tcc.pairs=all", "train.run_dir=one"]) == 0
    cfg = load_run("one")[1]
    loader = training_loader(cfg, torch.device("cpu"))
    batch = next(iter(loader))
    assert [labels[name] for name in batch["ids"]] == batch["actions"]
