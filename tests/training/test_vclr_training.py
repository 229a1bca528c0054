"""VCLR's training: the values of a step, its effects on the state, resuming, options."""

import json
from functools import partial

import pytest
import torch
from narrow import NARROW_CNN, NARROW_RESNET
from runs import numbers, same, weights
from steps import Killed, stopped_at
from vclr_cases import CLIPS, RECIPE, by_definition, tuples

import training.train
from training.data.index import build_index
from training.loop.dry_run import saved_bytes, saved_bytes_per_frame
from training.loop.schedule import learning_rate, warmup_share
from training.loop.trainer import Trainer
from training.loop.vclr_step import _Losses
from training.models import resnet, resnet3d, small_cnn
from training.models.vclr import MomentumEncoder
from training.recipe.load import load_config
from training.runs.checkpoint import load_latest
from training.runs.log import read_log
from training.runs.model import initial_model, load_run
from training.train import main

ONE = ["train.steps=1", "train.log_every=1"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "training_loader", tuples)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    return "tiny.yaml"


@pytest.mark.parametrize(("form", "clips"), [("code", []), ("paper", []), ("code", CLIPS)])
def test_first_step_from_the_definitions(recipe, form, clips):
    options = [*ONE, f"loss.vclr.form={form}", "loss.vclr.video=2", "optim.warmup_steps=0", *clips]
    assert main([recipe, "train.run_dir=run", *options]) == 0
    model, cfg = load_run("run", untrained=True)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    batch = next(tuples(cfg).stream(1))
    losses, keys = by_definition(model.train(), batch, form=form)
    line = read_log("run")[0]
    for name, loss in losses.items():
        assert line[f"loss_{name}"] == pytest.approx(loss.item(), rel=1e-4), name
    total = sum((2 if name == "video" else 1) * loss for name, loss in losses.items())
    assert line["loss"] == pytest.approx(total.item(), rel=1e-4)

    total.backward()
    after = weights("run")
    for name, parameter in model.named_parameters():
        if name.startswith("momentum"):
            continue
        gradient = parameter.grad + 1e-5 * start[name]  # weight decay
        torch.testing.assert_close(
            after[name], start[name] - 0.02 * gradient, rtol=1e-4, atol=1e-6, msg=name
        )
        if name.startswith("encoder"):  # the average moves a tenth of the way
            average = name.replace("encoder", "momentum.module", 1)
            expected = 0.9 * start[average] + 0.1 * after[name]
            torch.testing.assert_close(after[average], expected, rtol=1e-5, atol=1e-7)
    assert after["momentum.n_averaged"] == 2
    # Keys of this step, of norm 1, replaced the oldest rows; the others are unchanged.
    for name, count in (("inter", 6), ("video", 2)):
        queue = after[f"queues.{name}.features"]
        torch.testing.assert_close(queue[:count], keys[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(queue[count:], start[f"queues.{name}.features"][count:])
        assert after[f"queues.{name}.pointer"] == count


def test_momentum_encoder_averages_parameters_alone():
    module = torch.nn.BatchNorm1d(3)
    average = MomentumEncoder(module, 0.75)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(5.0)
    average.update_parameters(module)
    assert torch.equal(average.module.weight, torch.full((3,), 0.75 + 0.25 * 3))
    assert torch.equal(average.module.running_mean, torch.zeros(3))
    assert not average.module.weight.requires_grad


@pytest.mark.parametrize("clips", [[], CLIPS], ids=["frames", "clips"])
def test_resumed_run_equals_the_uninterrupted_one(recipe, clips):
    assert main([recipe, "train.run_dir=whole", *clips]) == 0

    with stopped_at(9), pytest.raises(Killed):
        main([recipe, "train.run_dir=parts", *clips])
    torch.rand(7)
    assert main([recipe, "train.run_dir=parts", "--resume", *clips]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")
    state = load_latest("parts/checkpoints")["model"]
    assert state["queues.inter.pointer"] == 12 * 6 % 20
    assert state["momentum.n_averaged"] == 13


def test_a_step_that_is_not_finite_changes_nothing(recipe, monkeypatch):
    cfg = load_config(recipe)
    trainer = Trainer(cfg, initial_model(cfg), tuples(cfg), None)
    batches = list(trainer.loader.stream(2))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    forward = _Losses.forward

    def broken(self, *args):
        losses, features = forward(self, *args)
        return losses * torch.nan, features

    monkeypatch.setattr(_Losses, "forward", broken)
    assert not trainer._train_step(batches[:1], 0.1).finite
    assert same(before, trainer.model.state_dict())
    assert not trainer.optimizer.state
    monkeypatch.setattr(_Losses, "forward", forward)
    result = trainer._train_step(batches[1:], 0.1)
    assert result.finite
    assert trainer.model.state_dict()["queues.video.pointer"] == 2  # no keys of the failed step
    assert trainer.model.momentum.n_averaged == 2


def test_parts_of_a_step_share_the_queue_and_fill_it_once(recipe):
    cfg = load_config(recipe, ["train.accumulate=2"])
    trainer = Trainer(cfg, initial_model(cfg), tuples(cfg), None)
    batches = list(trainer.loader.stream(2))
    expected = [by_definition(trainer.model.train(), batch, form="code") for batch in batches]
    result = trainer._train_step(batches, 0.01)
    for name in ("inter", "intra", "video", "order"):
        mean = sum(losses[name].item() for losses, _ in expected) / 2
        assert result.losses[f"loss_{name}"] == pytest.approx(mean, rel=1e-4)
    queue = trainer.model.queues["inter"]
    keys = torch.cat([keys["inter"] for _, keys in expected])
    torch.testing.assert_close(queue.features[:12], keys, rtol=1e-4, atol=1e-5)
    assert queue.pointer == 12
    assert trainer.model.momentum.n_averaged == 2


def test_pretrained_weights_start_both_encoders(recipe):
    pretrained = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in initial_model(load_config(recipe)).encoder.backbone.state_dict().items()
    }
    moco = {f"module.encoder_q.{key}": value for key, value in pretrained.items()}
    torch.save({"state_dict": moco | {"module.encoder_q.fc.weight": torch.rand(3)}}, "moco.pth")
    assert main([recipe, "train.run_dir=run", *ONE, "optim.lr=0", "model.weights=moco.pth"]) == 0
    state = weights("run")
    for key, value in pretrained.items():
        if "running" not in key and "num_batches" not in key:  # these change in the one step
            assert torch.equal(state[f"encoder.backbone.{key}"], value)
            torch.testing.assert_close(state[f"momentum.module.backbone.{key}"], value)


@pytest.mark.parametrize("used", ["inter", "intra", "video", "order", "inter,order"])
def test_losses_without_weight_are_left_out(recipe, used):
    names = used.split(",")
    rest = [f"loss.vclr.{n}=0" for n in ("inter", "intra", "video", "order") if n not in names]
    assert main([recipe, "train.run_dir=run", *ONE, *rest]) == 0
    state = weights("run")
    assert {key.split(".")[2] for key in state if key.startswith("encoder.heads")} == set(names)
    assert ("order.weight" in state) == ("order" in names)
    queues = {key.split(".")[1] for key in state if key.startswith("queues")}
    assert queues == set(names) & {"inter", "video"}
    initial = load_run("run", untrained=True)[0].state_dict()
    moved = [key for key in initial if not torch.equal(initial[key], state[key])]
    for name in names:  # (a bias before a difference of logits can stay where it is)
        assert f"encoder.heads.{name}.2.weight" in moved
    assert "encoder.backbone.layers.0.weight" in moved
    losses = {key for key in read_log("run")[0] if key.startswith("loss_")}
    assert losses == ({f"loss_{name}" for name in names} if len(names) > 1 else set())


def test_the_rate_warms_up_and_ends_at_the_least_one(recipe):
    cfg = load_config(recipe, ["optim.min_lr=0.001", "train.steps=11", "optim.warmup_steps=1"])
    warmup = warmup_share(cfg, 11, 5)
    rates = [learning_rate(cfg, step / 11, warmup) for step in range(12)]
    assert rates[0] == pytest.approx(0.02 / 100)
    assert rates[1] == pytest.approx(0.02)
    assert rates[6] == pytest.approx((0.02 + 0.001) / 2)
    assert rates[11] == pytest.approx(0.001)
    epochs = load_config(
        recipe, ["optim.warmup_steps=0", "optim.warmup_epochs=2", "train.accumulate=2"]
    )
    assert warmup_share(epochs, 100, 10) == 0.1
    assert learning_rate(epochs, 0.05, 0.1) == pytest.approx(0.02 * (0.01 + 0.99 / 2))
    constant = load_config(recipe, ["optim.schedule=constant"])
    assert learning_rate(constant, 0.9, 0.25) == 0.02
    assert learning_rate(constant, 0.125, 0.25) == pytest.approx(0.02 * 0.505)


@pytest.mark.parametrize(("name", "factor"), [("order", 0.5), ("inter", 0.9)])
def test_losses_fall_on_a_small_set(recipe, monkeypatch, name, factor):
    monkeypatch.setattr(training.train, "training_loader", partial(tuples, videos=8))
    rest = [f"loss.vclr.{n}=0" for n in ("inter", "intra", "video", "order") if n != name]
    # A queue with the keys of one step: half of them are of other videos.
    options = ["train.steps=100", "train.log_every=20", "data.batch_size=4", "optim.lr=0.05"]
    options += ["loss.vclr.queue_size=12"]
    assert main([recipe, "train.run_dir=run", *options, *rest]) == 0
    first, *_, last = read_log("run")
    assert last["loss"] < factor * first["loss"]
    assert last["pairwise_distance"] > 0.3


def test_resnet_features_are_means_over_space():
    options = ["model.backbone=resnet18", "loss.vclr.queue_size=4"]
    model = initial_model(load_config("recipes/vclr.yaml", options)).eval()
    frames = torch.randint(0, 256, (1, 2, 3, 64, 64)).to(torch.uint8)
    with torch.no_grad():
        features = model.encode(frames)
        maps = model.encoder.backbone.maps(model.encoder._normalise(frames[0]))
    assert maps.shape == (2, 512, 2, 2)
    torch.testing.assert_close(features[0], maps.mean((2, 3)))


def test_dry_run(recipe, capsys):
    assert main([recipe, "--dry-run", "data.segments=4"]) == 0
    out = capsys.readouterr().out
    assert "2 videos x 9 single frames = 18 frames of 16 px" in out
    assert "gradients and SGD" in out
    assert main([recipe, "--dry-run", *CLIPS, "data.segments=2"]) == 0
    out = capsys.readouterr().out
    assert "2 videos x 5 clips of 4 frames = 40 frames of 16 px" in out
    model = initial_model(load_config(recipe, CLIPS))
    # Per frame, all kept: the clip's float pixels enter the first convolution; its output, the
    # batch norm's (ReLU is in place) and those of the smaller layers.
    pixels, first, second, third = 3 * 16 * 16, 16 * 8 * 8, 32 * 4 * 4 / 2, 64 * 2 * 2 / 4
    kept = 4 * (pixels + 2 * (first + second + third))
    model.chunk_frames = 0
    whole = saved_bytes_per_frame(model, 16, torch.float32)
    assert whole == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("chunk_frames", [1, 6])
def test_a_dry_run_counts_whole_clips(recipe, chunk_frames):
    """A chunk is one clip of 4 frames, also if `train.chunk_frames` is less or no multiple."""
    model = initial_model(load_config(recipe, CLIPS))
    model.chunk_frames = 0
    whole = saved_bytes_per_frame(model, 16, torch.float32)
    model.chunk_frames = chunk_frames
    kept = saved_bytes_per_frame(model, 16, torch.float32)  # two and three clips: recomputed
    assert kept < whole / 2
    assert saved_bytes(model, 4, 16, torch.float32) == pytest.approx(4 * whole)
    assert saved_bytes(model, 40, 16, torch.float32) == pytest.approx(36 * kept + 4 * whole)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.clips=views", "loss.vclr needs data.clips=tuples, got views"),
        ("model.encoder=fve", "loss.vclr needs model.encoder=vclr, got fve"),
        ("loss.scl.weight=1", "loss.vclr cannot be combined with loss.scl"),
        ("loss.vclr.weight=0", "loss: every weight is 0"),
        ("loss.vclr.temperature=0", "loss.vclr.temperature: expected more than 0"),
        ("loss.vclr.form=both", "loss.vclr.form: expected one of paper, code"),
        ("data.num_context=2", "data.clips=tuples has no context frames, expected 1"),
        ("optim.warmup_epochs=1", "optim.warmup_epochs 1.0: set one of them and leave the other 0"),
        ("optim.name=lars", "optim.name: expected one of adam, adamw, sgd"),
    ],
)
def test_options_that_do_not_fit(recipe, override, message, capsys):
    assert main([recipe, override]) == 2
    assert message in capsys.readouterr().err


def test_other_losses_do_not_take_tuples(recipe, capsys):
    others = ["loss.vclr.weight=0", "loss.scl.weight=1"]
    assert main([recipe, *others]) == 2
    message = "data.clips=tuples works only with loss.vclr or loss.seco, got loss.scl"
    assert message in capsys.readouterr().err
    others += ["data.clips=views", "model.encoder=fve"]
    assert main([recipe, *others]) == 2
    assert (
        "augmentation.per_clip: false works only with data.clips=tuples" in capsys.readouterr().err
    )
    zero = [f"loss.vclr.{name}=0" for name in ("inter", "intra", "video", "order")]
    assert main([recipe, *zero]) == 2
    assert "inter, intra, video and order are all 0" in capsys.readouterr().err
    assert main([recipe, "loss.vclr.backend=cuda"]) == 2
    assert "error: loss.vclr: vclr_loss: inter: " in capsys.readouterr().err


@pytest.mark.parametrize(("name", "features"), [("vclr_s3d", 1024), ("vclr_r3d", 128)])
def test_recipes_of_clips_train_on_files(video_folder, name, features, monkeypatch):
    """The networks as they are, R3D-18 with few channels, on clips of five frames."""
    monkeypatch.setattr(resnet3d, "WIDTHS", NARROW_RESNET)
    small = ["data.tuple_frames=5", "data.tuple_stride=1", "model.projection_hidden=16"]
    small += ["augmentation.size=20", "data.cache_side=24", "data.batch_size=2", "data.workers=0"]
    small += ["loss.vclr.queue_size=16", "data.engine=pyav", "train.epochs=null", "train.steps=2"]
    small += ["train.log_every=1", "train.precision=fp32"]
    arguments = [f"recipes/{name}.yaml", f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([*arguments, *small]) == 0
    assert all(0 < line["loss"] < 20 for line in read_log("run"))
    model, _ = load_run("run")
    assert model.encode(torch.zeros(1, 3, 3, 20, 20, dtype=torch.uint8)).shape == (1, 3, features)
    before = load_run("run", untrained=True)[0].state_dict()
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    trained = {f"encoder.{key}" for key, p in model.encoder.named_parameters()}
    assert trained <= moved


@pytest.mark.parametrize("name", ["vclr", "vclr_demo"])
def test_recipes_train_on_files(video_folder, name, capsys, monkeypatch):
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    labels = {"videos": {"c.mp4": {"split": "test"}}}
    (video_folder / "labels.json").write_text(json.dumps(labels))
    build_index(video_folder)
    small = ["model.backbone=resnet18", "model.projection_hidden=16", "augmentation.size=32"]
    small += ["data.cache_side=36", "data.batch_size=2", "data.workers=0", "data.engine=pyav"]
    small += ["loss.vclr.queue_size=16", "train.epochs=null", "train.steps=2"]
    small += ["optim.warmup_epochs=0", "train.log_every=1", "train.precision=fp32"]
    arguments = [f"recipes/{name}.yaml", f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([*arguments, *small]) == 0
    assert all(line["loss"] > 0 for line in read_log("run"))
    model, _ = load_run("run")
    assert model.encode(torch.zeros(1, 5, 3, 32, 32, dtype=torch.uint8)).shape == (1, 5, 128)
    few = ["data.segments=10", "data.train_split=test"]
    assert main([*arguments, *small, *few, "--overwrite"]) == 2
    assert "too short: 10 segments of two frames need 20 frames" in capsys.readouterr().err
