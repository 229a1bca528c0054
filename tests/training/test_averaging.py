"""The average of the weights: its values, where it is kept, and where it is loaded."""

import pytest
import torch
from runs import same
from steps import batches, last_state, make_trainer, newest
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.loop.averaging import WeightAverage
from training.models import load_backbone_weights
from training.recipe.load import load_config
from training.runs.checkpoint import load_weights
from training.runs.model import initial_model
from training.train import main

EMA = "optim.ema=0.8"


def copied(state):
    return {key: value.clone() for key, value in state.items()}


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.mark.parametrize("vclr", [False, True])
def test_the_average_is_that_of_its_definition_and_of_torch(tmp_path, vclr):
    trainer = make_trainer(tmp_path, EMA, "optim.lr=0.05", vclr=vclr)
    model, step = trainer.model, trainer.gradient_step
    torch_average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    torch_average.n_averaged.fill_(1)  # at 0 its first update copies the weights
    start = copied(model.state_dict())
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    expected = {key: start[key].double() for key in trained}
    for batch in batches(trainer, 3):
        assert step([batch], 0.05, list).finite
        torch_average.update_parameters(model)
        for key, p in model.named_parameters():
            if key in trained:
                expected[key] = 0.8 * expected[key] + 0.2 * p.detach().double()
    state = step.average.state_dict()
    assert state.keys() == start.keys()
    for key, value in state.items():
        if key in trained:
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-7, msg=key)
            assert torch.equal(value, torch_average.module.state_dict()[key]), key
        else:  # buffers, and VCLR's momentum encoder and queues
            assert torch.equal(value, model.state_dict()[key]), key
    moved = [key for key in trained if not torch.equal(state[key], model.state_dict()[key])]
    assert len(moved) > len(trained) / 2


def test_a_skipped_step_does_not_enter_the_average(tmp_path):
    trainer = make_trainer(tmp_path, EMA)
    step = trainer.gradient_step
    first, second = batches(trainer, 2)
    assert step([first], 0.05, list).finite
    before = copied(step.average.state_dict())
    trainer.model.state_dict()["projection.0.bias"].fill_(torch.nan)
    assert not step([second], 0.05, list).finite
    after = step.average.state_dict()
    assert same(
        {k: after[k] for k in dict(trainer.model.named_parameters())},
        {k: before[k] for k in dict(trainer.model.named_parameters())},
    )


def test_frozen_parameters_take_no_memory(tmp_path):
    options = [EMA, "model.train_from=none", "model.random_frozen=true"]
    trainer = make_trainer(tmp_path, *options)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert list(trainer.gradient_step.average.averages) == trained
    assert len(trained) < len(list(trainer.model.parameters()))


def test_a_parameter_with_two_names_is_averaged_under_both():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    average = WeightAverage(model, 0.5)
    model["a"].weight.data += 1
    average.update()
    state = average.state_dict()
    assert torch.equal(state["a.weight"], state["b.weight"])
    torch.testing.assert_close(state["b.weight"], model["a"].weight - 0.5)
    other = WeightAverage(model, 0.5)
    other.load_state_dict(copied(state))
    assert same(other.state_dict(), state)


def test_the_evaluated_model_has_the_average_for_a_while(tmp_path):
    trainer = make_trainer(tmp_path, EMA)
    for batch in batches(trainer, 2):
        trainer.gradient_step([batch], 0.05, list)
    own = copied(trainer.model.state_dict())
    average = copied(trainer.gradient_step.average.state_dict())
    assert not same(own, average)
    with trainer.evaluated_model() as model:
        assert model is trainer.model
        assert same(model.state_dict(), average)
    assert same(trainer.model.state_dict(), own)
    with pytest.raises(KeyError), trainer.evaluated_model():
        raise KeyError
    assert same(trainer.model.state_dict(), own)
    assert same(trainer.gradient_step.average.state_dict(), average)
    plain = make_trainer(tmp_path)
    with plain.evaluated_model() as model:
        assert model is plain.model


@pytest.fixture
def run(recipe):
    assert main([recipe, "train.run_dir=run", EMA, "optim.lr=0.02"]) == 0
    return "run"


def test_checkpoints_have_both(run):
    state = last_state(run)
    assert state["ema"].keys() == state["model"].keys()
    assert not same(state["ema"], state["model"])
    model = initial_model(load_config("tiny.yaml", []))
    load_weights(model, state, run)
    assert same(model.state_dict(), state["model"])
    load_weights(model, state, run, averaged=True)
    assert same(model.state_dict(), state["ema"])
    load_weights(model, {"model": state["model"]}, run, averaged=True)  # a run without an average
    assert same(model.state_dict(), state["model"])


def test_another_run_starts_from_the_average(run, caplog):
    caplog.set_level("INFO")
    state = last_state(run)

    def start(*options):
        return initial_model(load_config("tiny.yaml", ["train.seed=1", *options])).state_dict()

    for place in (run, str(newest(run))):
        assert same(start(f"model.weights={place}", "model.weights_parts=all"), state["ema"])
        found = part(start(f"model.weights={place}"), "backbone.")
        assert same(found, part(state["ema"], "backbone."))
    assert "has an average of the weights (optim.ema), which is loaded" in caplog.text
    chosen = [f"model.weights={run}", "model.weights_key=model", "model.weights_parts=all"]
    assert same(start(*chosen), state["model"])


def test_the_average_of_vclr_is_loaded_and_not_its_momentum_encoder(tmp_path):
    trainer = make_trainer(tmp_path, EMA, "optim.lr=0.05", vclr=True)
    for batch in batches(trainer, 3):
        trainer.gradient_step([batch], 0.05, list)
    trainer.save()
    (trainer.run_dir / "config.yaml").touch()
    average = part(trainer.gradient_step.average.state_dict(), "encoder.backbone.")
    other = make_trainer(tmp_path, "train.seed=1", vclr=True).model.backbone
    load_backbone_weights(other, trainer.run_dir)
    assert same(other.state_dict(), average)
    assert not same(average, part(trainer.model.state_dict(), "encoder.backbone."))
    assert not same(average, part(trainer.model.state_dict(), "momentum.module.backbone."))


def test_a_file_of_another_project_keeps_its_convention(run, tmp_path):
    state = last_state(run)
    path = tmp_path / "checkpoints" / "other.pt"  # no config.yaml above it
    path.parent.mkdir()
    torch.save({name: state[name] for name in ("ema", "model")}, path)
    backbone = initial_model(load_config("tiny.yaml", ["train.seed=1"])).backbone
    load_backbone_weights(backbone, path)
    assert same(backbone.state_dict(), part(state["model"], "backbone."))
