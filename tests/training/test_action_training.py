"""Training of classifiers of actions: a step's values, resuming, ranks, classes and weights."""

import json
from pathlib import Path

import pytest
import torch
from action_cases import RECIPE, segments
from action_ranks import both
from action_ranks import main as on_ranks
from narrow import NARROW_CNN
from pairs import grey_video
from processes import launch, said, wait
from runs import numbers, same, weights
from steps import stopped_at
from vclr_cases import RECIPE as VCLR_RECIPE
from vclr_cases import tuples

import training.train
from training.data.index import build_index
from training.evaluation.curve import step_evaluation
from training.loop.trainer import Trainer
from training.models import small_cnn
from training.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from training.recipe.load import ConfigError, load_config
from training.runs.log import read_log
from training.runs.model import initial_model, load_run
from training.support.command import UserError
from training.train import main

NAMES = ["catch", "run", "throw"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "training_loader", segments)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    return "tiny.yaml"


def test_first_step_from_the_definitions(recipe):
    options = ["train.steps=1", "train.log_every=1", "loss.action.label_smoothing=0.3"]
    options += ["optim.warmup_steps=0", "optim.weight_decay=0", "loss.action.weight=2"]
    assert main([recipe, "train.run_dir=run", *options]) == 0
    model, cfg = load_run("run", untrained=True)
    model.train()
    start = {key: value.clone() for key, value in model.named_parameters()}
    loader = segments(cfg)
    batch = next(loader.stream(1))
    features = model.features(batch["frames"].flatten(0, 2)[None])[0].unflatten(0, (2, 3))
    linear = model.heads["action"][1]
    losses, right = [], 0
    for video, action in enumerate(batch["actions"]):
        scores = torch.stack([linear.weight @ one + linear.bias for one in features[video]]).mean(0)
        target = torch.full((3,), 0.3 / 3)
        target[NAMES.index(action)] += 0.7
        losses.append(-(target * scores.log_softmax(0)).sum())
        right += scores.argmax().item() == NAMES.index(action)
    (line,) = read_log("run")
    loss = torch.stack(losses).mean()
    assert line["loss"] == pytest.approx(2 * loss.item(), rel=1e-5)
    assert line["accuracy"] == right / 2
    (2 * loss).backward()
    after = weights("run")
    for name, parameter in model.named_parameters():
        expected = start[name] - 0.02 * parameter.grad
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_resumed_run_equals_the_uninterrupted_one(recipe):
    options = ["loss.action.dropout=0.5", "optim.ema=0.9"]
    assert main([recipe, "train.run_dir=whole", *options]) == 0
    with stopped_at(9, KeyboardInterrupt):
        assert main([recipe, "train.run_dir=parts", *options]) == 130
    torch.rand(7)
    assert main([recipe, "train.run_dir=parts", *options, "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    assert json.loads(Path("parts/classes.json").read_text()) == {"classes": [[n] for n in NAMES]}


def test_other_classes_are_refused_on_resume(recipe, capsys):
    assert main([recipe, "train.run_dir=run", "train.steps=5"]) == 0
    Path("run/classes.json").write_text(json.dumps({"classes": [["catch"], ["run"], ["jump"]]}))
    assert main([recipe, "train.run_dir=run", "train.steps=5", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "trained with the classes catch, run, jump, and the labels now have catch, run" in error


@pytest.mark.parametrize("stride", [1, 2])
def test_networks_of_clips_train_and_classify(recipe, stride, capsys):
    options = ["model.backbone=small_cnn3d", "data.segments=2", "data.tuple_frames=4"]
    options += [f"data.tuple_stride={stride}", "train.chunk_frames=null"]
    assert main([recipe, *options, "--dry-run"]) == 0
    assert "2 videos x 2 clips of 4 frames = 16 frames of 16 px" in capsys.readouterr().out
    assert main([recipe, *options, "train.run_dir=run"]) == 0
    assert all(0 < line["loss"] < 5 for line in read_log("run"))
    model, cfg = load_run("run")
    (batch,) = segments(cfg).stream(1)
    with torch.no_grad():
        scores, features = model.classify(batch["frames"])
        clip = batch["frames"][1, 1].movedim(1, 0)[None].float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        vector = model.backbone((clip - mean) / std)[0]
    torch.testing.assert_close(features[1, 1], vector, rtol=1e-4, atol=1e-5)
    assert scores.shape == (2, 3)
    before = load_run("run", untrained=True)[0].backbone.state_dict()
    assert not same(model.backbone.state_dict(), before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_and_parts(recipe, precision):
    arguments = [recipe, "train.steps=3", "train.log_every=1", f"train.precision={precision}"]
    arguments += ["train.chunk_frames=2", "optim.grad_clip=40"]
    assert main([*arguments, "train.run_dir=run"]) == 0
    exact = arguments[:3] + arguments[4:]
    assert main([*exact, "train.run_dir=exact"]) == 0
    for low, high in zip(read_log("run"), read_log("exact"), strict=True):
        assert low["loss"] == pytest.approx(high["loss"], rel=0.05)
        assert low["skipped"] == 0


def test_parts_of_a_step_are_the_whole_batch(recipe):
    cfg = load_config(recipe, ["data.batch_size=4", "model.train_from=none"])
    cfg.model.random_frozen = True
    loader = segments(cfg, videos=11)
    batch = next(loader.stream(1))
    halves = [
        {k: v[part] for k, v in batch.items() if isinstance(v, torch.Tensor)}
        for part in (slice(0, 1), slice(1, 4))
    ]
    trainer = Trainer(cfg, initial_model(cfg).double(), loader, None)
    made = []
    for parts in ([batch], halves):
        _, values, _ = trainer.gradient_step.gradient(parts)
        gradients = [p.grad.clone() for p in trainer.gradient_step.parameters]
        made.append([values, *gradients])
    for once, split in zip(*made, strict=True):
        torch.testing.assert_close(split, once)


@pytest.mark.process
def test_two_ranks_train_as_one(tmp_path, monkeypatch):
    """Batch norms use the frames of both ranks; weights and statistics are the same."""
    monkeypatch.chdir(tmp_path)
    processes = launch(on_ranks, tmp_path, num=2)
    one = both(tmp_path)
    assert wait(processes) == [0, 0], said(processes[0])
    two = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for what, expected in one.items():
        for rank in two:
            got = rank[what]
            assert got["loss"] == pytest.approx(expected["loss"], rel=1e-7)
            assert got["accuracy"] == pytest.approx(expected["accuracy"])
            for key, value in expected["state"].items():
                torch.testing.assert_close(got["state"][key], value, rtol=1e-6, atol=1e-9, msg=key)
        assert same(two[0][what]["state"], two[1][what]["state"])


def test_dry_run(recipe, capsys):
    assert main([recipe, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 videos x 3 single frames = 6 frames of 16 px" in shown
    assert "memory       about" in shown
    options = ["model.backbone=small_cnn3d", "data.tuple_frames=4", "data.segments=1"]
    assert main([recipe, *options, "--dry-run"]) == 0
    assert "2 videos x 1 clip of 4 frames = 8 frames of 16 px" in capsys.readouterr().out


def test_a_classifier_starts_from_the_backbone_of_a_vclr_run(recipe, monkeypatch, caplog):
    Path("vclr.yaml").write_text(VCLR_RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(training.train, "training_loader", tuples)
        assert main(["vclr.yaml", "train.run_dir=vclr", "train.steps=3"]) == 0
    trained = load_run("vclr")[0].encoder.backbone.state_dict()
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main([recipe, "model.weights=vclr", "train.run_dir=run", "train.steps=2"]) == 0
    assert f"{len(trained)} entries loaded from model.encoder.backbone.*" in caplog.text
    assert "0 missing, 0 not used\n" in caplog.text  # as docs/actions.md shows it
    start = load_run("run", untrained=True)[0].backbone.state_dict()
    assert same(start, trained)
    assert not same(load_run("run")[0].backbone.state_dict(), trained)


# --- real files ---------------------------------------------------------------------------------


@pytest.fixture
def labelled(video_folder, monkeypatch):
    """Three videos of two actions; b.mp4 has no action, and d.mp4 is a test video."""
    (video_folder / "d.mp4").write_bytes((video_folder / "a.mp4").read_bytes())
    Path("action.yaml").write_text(RECIPE)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    write(video_folder, a="pour", c="swing", d=("pour", "test"))
    return video_folder


def write(folder: Path, **actions: str | tuple[str, str]) -> None:
    videos = {}
    for name, action in actions.items():
        action, split = action if isinstance(action, tuple) else (action, "train")
        videos[f"{name}.mp4"] = {"action": action, "split": split}
    (folder / "labels.json").write_text(json.dumps({"videos": videos}))
    build_index(folder)


ARGUMENTS = ["action.yaml", "train.steps=2", "train.log_every=1", "data.batch_size=2"]


def test_videos_without_an_action_are_counted_and_not_read(labelled, caplog):
    with caplog.at_level("INFO"):
        assert main([*ARGUMENTS, "train.run_dir=run"]) == 0
    assert "classes: 2, learned from the labels of 2 of 3 training videos" in caplog.text
    assert "the other videos are not read" in caplog.text
    cfg = load_run("run")[1]
    assert cfg.loss.action.classes == 2
    loader = training.train.training_loader(cfg, torch.device("cpu"))
    batch = next(iter(loader))
    assert sorted(zip(batch["ids"], batch["labels"].tolist(), strict=True)) == [
        ("a.mp4", 0),
        ("c.mp4", 1),
    ]
    assert batch["frames"].shape == (2, 3, 1, 3, 16, 16)


@pytest.mark.parametrize(
    ("actions", "options", "said_"),
    [
        (
            {"a": "pour", "b": "pour", "c": "pour"},
            [],
            'have 1 action (pour), expected at least 2: write "action"',
        ),
        (
            {"a": "pour", "b": "swing"},
            ["data.where.action=pour"],
            "have 1 action (pour), expected at least 2: change the filter data.where.action=pour, "
            'or write "action"',
        ),
        (
            {"a": "pour", "b": "swing"},
            ["data.tuple_frames=2", "data.tuple_stride=100000"],
            "all 2 training videos are shorter than a clip of 100001 frames "
            "(data.tuple_frames=2 data.tuple_stride=100000): set smaller values",
        ),
        ({}, [], "have 0 actions, expected at least 2: write"),
        (
            {"a": "pour", "b": "swing"},
            ["loss.action.classes=7"],
            "loss.action.classes: got 7, the labels of the training videos have 2 classes",
        ),
    ],
)
def test_labels_that_do_not_fit(labelled, capsys, actions, options, said_):
    write(labelled, **actions)
    assert main([*ARGUMENTS, "train.run_dir=run", *options]) == 2
    assert said_ in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_videos_shorter_than_a_clip_are_counted(labelled, caplog, options):
    grey_video(labelled / "c.mp4", range(5))
    write(labelled, a="pour", c="swing", d=("fly", "test"))
    span = ["data.tuple_frames=3", "data.tuple_stride=3", "train.run_dir=run"]
    assert main([*ARGUMENTS, *span, *options]) == 0
    assert (
        "1 of 2 training videos are shorter than a clip of 7 frames (data.tuple_frames=3 "
        "data.tuple_stride=3): their last frame is repeated" in caplog.text
    )
    assert "1 of 1 test videos are not scored" in caplog.text


def test_evaluations_keep_the_best_checkpoint(labelled, caplog):
    (labelled / "e.mp4").write_bytes((labelled / "a.mp4").read_bytes())
    write(labelled, a="pour", b="swing", c="swing", d=("pour", "val"), e=("fly", "val"))
    options = ["train.evaluate_every=1", "train.keep_best=top_1", "train.steps=3"]
    assert main([*ARGUMENTS, *options, "train.run_dir=run"]) == 0
    lines = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["split"] == "val" for line in lines)
    assert all(set(line["metrics"]) == {"top_1", "mean_class_accuracy"} for line in lines)
    unseen = "1 of 2 val videos are not scored, because no training video has their action: fly"
    assert caplog.text.count(unseen) == 1
    best = max(line["metrics"]["top_1"] for line in lines)
    assert json.loads(Path("run/best.json").read_text())["value"] == best
    # The training is the same without evaluations.
    assert main([*ARGUMENTS, "train.steps=3", "train.run_dir=plain"]) == 0
    assert same(weights("run"), weights("plain"))
    write(labelled, a="pour", b="swing", d=("fly", "val"))
    cfg = load_config(ARGUMENTS[0], ["data.folder=videos", *options])
    with pytest.raises(UserError, match="no video of the split 'val' has an action of the train"):
        step_evaluation(cfg, None)


@pytest.mark.parametrize(
    ("options", "said_"),
    [
        (["loss.scl.weight=1"], "loss.action cannot be combined with loss.scl"),
        (["data.clips=views"], "loss.action needs data.clips=segments, got views"),
        (["model.encoder=fve"], "loss.action needs model.encoder=tsn, got fve"),
        (
            ["loss.action.weight=null"],
            "data.clips=segments works only with loss.action, got loss.scl",
        ),
        (["data.num_context=2"], "data.num_context: data.clips=segments has no context frames"),
        (["data.cache=features"], "data.cache=features keeps a vector for each frame"),
        (["data.split_time=2"], "data.split_time: got 2, but loss.action compares whole clips"),
        (["model.shift=1"], "model.shift: expected 0 or at least 2"),
        (["model.shift=8"], "model.shift=8 needs model.backbone to be one of resnet18"),
        (
            ["model.shift=8", "model.backbone=resnet18", "data.tuple_frames=2"],
            "expected data.tuple_frames=1 and data.segments of at least 2, got 2 and 3",
        ),
        (
            ["model.shift=8", "model.backbone=resnet18", "data.segments=1"],
            "expected data.tuple_frames=1 and data.segments of at least 2, got 1 and 1",
        ),
        (["augmentation.per_clip=false"], "augmentation.per_clip: false works only with"),
    ],
)
def test_combinations_that_do_not_fit(recipe, options, said_):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, options)
    assert said_ in str(error.value)


def test_a_shift_without_the_classifier_is_refused(recipe):
    options = ["model.shift=8", "loss.action.weight=null", "data.clips=views", "model.encoder=fve"]
    with pytest.raises(ConfigError, match=r"model\.shift=8 works only with model\.encoder=tsn"):
        load_config(recipe, options)
