"""Comparison of VCLR's losses: the videos of eight classes, the methods, the table, small runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastseq.video import probe
from training import compare
from training.demo.classes import CLASSES, FRAMES, REVERSED, main, plan_class, render_classes
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
            assert (np.diff(phases) >= 0).all() == (name not in REVERSED)
            numbers.add((plan.action, plan.split, plan.number))
    assert len(numbers) == 20 * len(CLASSES)  # each video has its own draws


def test_a_backward_class_has_the_poses_of_its_forward_class():
    """Only their order differs, so that a single frame cannot distinguish them."""
    for name, forward in REVERSED.items():
        assert CLASSES[name] == CLASSES[forward]
        plan = plan_class(0, name, "train", 1)
        whole = VideoPlan(plan.action, plan.split, plan.number, plan.boundaries, plan.frames)
        assert plan.phases.tolist() == whole.phases[::-1].tolist()
        assert plan.fractions.tolist() == whole.fractions[::-1].tolist()
        shown, other = (render_video(one, seed=0, side=32).astype(int) for one in (plan, whole))
        # Equal but for breathing, which depends on the frame number.
        assert np.abs(shown - other[::-1]).mean() < 0.5 * np.abs(shown - other).mean()


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


@pytest.mark.parametrize("numbers", [(-3, 20), (0, 0)])
def test_numbers_that_make_no_videos_are_refused(tmp_path, capsys, numbers):
    train, test = numbers
    with pytest.raises(SystemExit, match="2"):
        main([f"{tmp_path}/v", f"--train-per-class={train}", f"--test-per-class={test}"])
    error = capsys.readouterr().err
    assert f"not both 0, got train_per_class={train}, test_per_class={test}" in error
    assert not list(tmp_path.iterdir())


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


def test_methods_differ_in_the_losses_and_those_of_clips_in_the_network_and_optimizer():
    configs = {
        name: load_config(suites.VCLR_RECIPE, options)
        for name, options in suites.VCLR_METHODS.items()
    }
    losses = ("inter", "intra", "video", "order")
    used = {name: [loss for loss in losses if cfg.loss.vclr[loss]] for name, cfg in configs.items()}
    clips = {name.removeprefix("clips_"): used.pop(name) for name in configs if "clips_" in name}
    assert clips == {
        "untrained": list(losses),
        "inter": ["inter"],
        "inter_video": ["inter", "video"],
        "inter_video_order": ["inter", "video", "order"],
        "all": list(losses),
    }
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
        like = configs["clips_all" if name.startswith("clips_") else "all"]
        assert cfg.data == like.data
        assert cfg.model == like.model
        assert cfg.train == configs["all"].train
        assert (cfg.optim == like.optim) == ("untrained" not in name)
    assert configs["all"].model.backbone == "small_cnn"
    assert configs["all"].data.tuple_frames == 1
    assert configs["all"].optim.name == "sgd"
    assert configs["clips_all"].optim.name == "adam"
    assert configs["clips_untrained"].optim.lr == 0
    assert configs["clips_all"].model.backbone == "small_cnn3d"
    assert configs["clips_all"].data.tuple_frames == 4
    assert comparison_table.VCLR_TITLES.keys() == suites.VCLR_METHODS.keys()


@pytest.mark.parametrize("method", ["untrained", "clips_untrained"])
def test_networks_that_are_not_trained_only_count_their_statistics(method):
    options = SimpleNamespace(suite="vclr", overrides=[], steps=400)
    assert compare._overrides(method, options)[-1] == "train.steps=50"
    assert compare._overrides(method.replace("untrained", "inter"), options)[-1] == (
        "train.steps=400"
    )


def test_table_by_hand():
    def result(svm):
        return {"metrics": {"linear_svm": svm, "recall_at_1": 0.5, "recall_at_10": None}}

    results = {"video": [result(0.5), result(0.7)], "inter": [result(0.6), result(0.6)]}
    text = comparison_table.vclr_table(results)
    assert "| video-level alone | 0.600 ± 0.141 | - | 0.500 ± 0.000 | - | - | - | - |" in text
    claim = "video-level alone above inter-frame alone in linear SVM: in 1 of 2 seeds"
    assert f"- {claim} (-0.100, +0.100)." in text
    assert text.count("\n- ") == 1


def test_clips_are_compared_with_clips_and_with_frames():
    def result(svm, recall, direction):
        values = {"linear_svm": svm, "recall_at_1": recall, "direction": direction}
        return {"metrics": values}

    results = {
        "inter": [result(0.5, 0.4, 0.5)],
        "clips_inter": [result(0.6, 0.5, 0.9)],
        "clips_inter_video": [result(0.7, 0.45, 0.8)],
    }
    found = comparison_table.vclr_table(results).split("\n- ")[1:]
    clips, more = "clips, inter", "clips, inter + video"
    assert [line.strip() for line in found] == [
        f"{more} above {clips} in linear SVM: in 1 of 1 seeds (+0.100).",
        f"{more} above {clips} in R@1: in 0 of 1 seeds (-0.050).",
        f"{clips} above inter-frame alone in linear SVM: in 1 of 1 seeds (+0.100).",
        f"{clips} above inter-frame alone in direction: in 1 of 1 seeds (+0.400).",
    ]


def test_direction_is_measured_between_a_class_and_its_backward_class(tmp_path, monkeypatch):
    """Features that show the direction of one action of two: 1 and 1/2 on average."""
    index = SimpleNamespace(videos=[], classes={})
    rows = []
    for name in CLASSES:
        for split in ("train", "test"):
            for number in range(4):
                index.videos.append(SimpleNamespace(action=name, split=split))
                shown = (name in REVERSED) != (name.startswith("swing") and number % 2)
                rows.append([1.0 if shown else -1.0, 0.1])
    monkeypatch.setattr("training.data.selection.open_index", lambda cfg: index)
    monkeypatch.setattr(
        "training.evaluation.encoders.load_encoder", lambda run: (None, SimpleNamespace())
    )
    monkeypatch.setattr(
        "training.evaluation.video_level.video_features",
        lambda *_, **__: {"trained": np.array(rows)},
    )
    monkeypatch.setattr("training.runs.log.read_log", lambda run: [{"seconds": 1.0}])
    assert suites.SUITES["vclr"].evaluate(tmp_path)["metrics"]["direction"] == 0.75


@pytest.mark.parametrize("method", ["inter_intra", "clips_inter_video"])
def test_a_small_comparison(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--suite", "vclr", "--seeds", "1", "--methods", f"untrained,{method}"]
    arguments += ["--train-videos", "2", "--test-videos", "1", "--steps", "2", "--jobs", "1"]
    if method == "inter_intra":
        arguments += ["augmentation.size=32", "data.cache_side=36"]
    arguments += ["data.batch_size=2", "train.log_every=1", "loss.vclr.queue_size=16"]
    assert compare.main(arguments) == 0
    folder = Path("compare_vclr")
    table = (folder / "comparison.md").read_text()
    saved = json.loads((folder / "seed_0" / method / "result.json").read_text())
    title = comparison_table.VCLR_TITLES[method]
    row = next(line for line in table.splitlines() if line.startswith(f"| {title} |"))
    assert f"| {saved['metrics']['linear_svm']:.3f} | {saved['metrics']['direction']:.3f} |" in row
    losses = {f"loss_{one}" for one in method.removeprefix("clips_").split("_")}
    assert {key for key in saved["log"] if key.startswith("loss_")} == losses
    assert "time index" not in table
    capsys.readouterr()
    assert compare.main(arguments) == 0
    assert f"{title}, seed 0: there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main(["--suite", "vclr", "--methods", "carl"])
    assert "'carl'; expected some of untrained, intra" in capsys.readouterr().err
