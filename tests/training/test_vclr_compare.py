"""Comparison of VCLR's losses: the videos of six classes, the methods, the table, a small run."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastseq.video import probe
from training import compare
from training.demo.classes import CLASSES, FRAMES, plan_class, render_classes
from training.demo.render import VideoPlan, render_video
from training.demo.scene import ACTIONS
from training.recipe.load import load_config
from training.studies import comparison_table, suites

SMALL = {"train_per_class": 2, "test_per_class": 1, "side": 32, "progress": False}


def test_classes_show_their_phases_alone():
    numbers = set()
    for name, (action, first, last) in CLASSES.items():
        for number in range(20):
            plan = plan_class(3, name, "train", number)
            assert plan == plan_class(3, name, "train", number)
            assert plan.id == f"{name}/train_{number:03d}.mp4"
            assert len(plan.boundaries) == len(ACTIONS[action].phases) - 1
            assert FRAMES[0] <= plan.frames <= FRAMES[1]
            phases = plan.phases
            assert len(phases) == plan.frames
            assert sorted(set(phases)) == list(range(first, last + 1))
            assert min(np.bincount(phases)[first:]) >= 4
            assert (plan.fractions >= 0).all()
            assert (plan.fractions < 1).all()
            numbers.add((plan.action, plan.split, plan.number))
    assert len(numbers) == 20 * len(CLASSES)  # each video has its own draws


def test_rendered_classes(tmp_path):
    summary = render_classes(tmp_path / "videos", seed=1, **SMALL)
    assert summary.videos == 3 * len(CLASSES)
    assert not summary.reused
    labels = json.loads((tmp_path / "videos/labels.json").read_text())
    for name, entry in labels["videos"].items():
        folder, file = name.split("/")
        assert entry == {"action": folder, "split": file.split("_")[0]}
        assert probe(tmp_path / "videos" / name).frames >= FRAMES[0]
    assert render_classes(tmp_path / "videos", seed=1, **SMALL).reused
    with pytest.raises(FileExistsError, match="holds something else"):
        render_classes(tmp_path / "videos", seed=2, **SMALL)


def test_a_class_is_a_part_of_its_action():
    """The same plan, with the whole action around it, shows the same pictures in that part."""
    part = plan_class(0, "swing-downswing", "test", 0)
    before, after = 10, 7
    boundaries = (4, before, before + part.boundaries[2], before + part.frames)
    whole = VideoPlan("swing", "test", part.number, boundaries, before + part.frames + after)
    shown = render_video(part, seed=0, side=32)
    around = render_video(whole, seed=0, side=32)[before:-after]
    # Colours, viewpoint and pose are equal; breathing depends on the frame number.
    assert shown.shape == around.shape
    assert np.abs(shown.astype(int) - around.astype(int)).mean() < 3


def test_methods_differ_in_the_weights_of_the_losses_alone():
    configs = {
        name: load_config(suites.VCLR_RECIPE, options)
        for name, options in suites.VCLR_METHODS.items()
    }
    losses = ("inter", "intra", "video", "order")
    used = {name: [loss for loss in losses if cfg.loss.vclr[loss]] for name, cfg in configs.items()}
    assert used == {
        "untrained": list(losses),
        "intra": ["intra"],
        "inter": ["inter"],
        "video": ["video"],
        "order": ["order"],
        "inter_intra": ["inter", "intra"],
        "inter_intra_order": ["inter", "intra", "order"],
        "inter_intra_video": ["inter", "intra", "video"],
        "all": list(losses),
    }
    for name, cfg in configs.items():
        assert cfg.data == configs["all"].data
        assert cfg.model == configs["all"].model
        assert (cfg.optim == configs["all"].optim) == (name != "untrained")
    assert comparison_table.VCLR_TITLES.keys() == suites.VCLR_METHODS.keys()


def test_table_by_hand():
    def result(svm):
        return {"metrics": {"linear_svm": svm, "recall_at_1": 0.5, "recall_at_10": None}}

    results = {"video": [result(0.5), result(0.7)], "inter": [result(0.6), result(0.6)]}
    text = comparison_table.vclr_table(results)
    assert "| video-level alone | 0.600 ± 0.141 | 0.500 ± 0.000 | - | - | - | - |" in text
    claim = "video-level alone above inter-frame alone in linear SVM: in 1 of 2 seeds"
    assert f"- {claim} (-0.100, +0.100)." in text
    assert text.count("\n- ") == 1


def test_a_small_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--suite", "vclr", "--seeds", "1", "--methods", "untrained,inter_intra"]
    arguments += ["--train-videos", "2", "--test-videos", "1", "--steps", "2", "--jobs", "1"]
    small = ["augmentation.size=32", "data.cache_side=36", "data.batch_size=2"]
    arguments += [*small, "train.log_every=1", "loss.vclr.queue_size=16"]
    assert compare.main(arguments) == 0
    folder = Path("compare_vclr")
    table = (folder / "comparison.md").read_text()
    saved = json.loads((folder / "seed_0/inter_intra/result.json").read_text())
    row = next(line for line in table.splitlines() if line.startswith("| inter + intra |"))
    assert f"| {saved['metrics']['linear_svm']:.3f} |" in row
    assert set(saved["log"]) >= {"loss_inter", "loss_intra"}
    assert "time index" not in table
    capsys.readouterr()
    assert compare.main(arguments) == 0
    assert "inter + intra, seed 0: there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main(["--suite", "vclr", "--methods", "carl"])
    assert "'carl'; expected some of untrained, intra" in capsys.readouterr().err
