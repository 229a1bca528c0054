"""SeCo: its three tasks from their definitions, and its training."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from narrow import NARROW_CNN, NARROW_RESNET
from processes import launch, said, wait
from runs import numbers, same, weights
from seco_ranks import SECO
from seco_ranks import main as ranks_main
from steps import Killed, stopped_at
from vclr_cases import CLIPS, RECIPE, tuples

import fastseq
import training.train
from training.data.index import build_index
from training.loop.seco_step import order_validation, places_of_halves
from training.models import resnet, small_cnn
from training.recipe.load import load_config
from training.runs.log import read_log
from training.runs.model import load_run
from training.train import main

ONE = ["train.steps=1", "train.log_every=1"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "training_loader", tuples)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    return ["tiny.yaml", *SECO]


def test_values_of_the_released_code():
    """Values of MemorySeCo and its cross-entropies in float64 (Contrast.py, commit 16a7187)."""
    rows = torch.sin(torch.arange(176.0, dtype=torch.float64).view(22, 8) ** 1.5)
    q, k1, k2, k3, queue = F.normalize(rows, dim=-1).split([3, 3, 3, 3, 10])
    keys = torch.stack([k1, k2, k3], 1)
    inter = fastseq.vclr_loss(inter=(q, keys, queue), temperature=0.1)
    assert inter.item() == pytest.approx(7.29325942840944, rel=1e-12)
    intra = fastseq.vclr_loss(intra=(q, k1, keys[:, 1:]), temperature=0.1, form="code")
    assert intra.item() == pytest.approx(1.752362843210762, rel=1e-12)
    classifier = torch.nn.Linear(24, 2).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.cos(torch.arange(48.0, dtype=torch.float64)).view(2, 24))
        classifier.bias.copy_(torch.tensor([0.1, -0.2]))
    order = order_validation(3 * q, 5 * keys[:, 1:], torch.tensor([0, 1, 1]), classifier)
    assert order.item() == pytest.approx(1.5291963160629836, rel=1e-12)


def test_the_keys_come_from_the_other_half(recipe):
    cfg = load_config(recipe[0], [*recipe[1:], "data.batch_size=5"])
    labels = []
    for batch in tuples(cfg).stream(8):
        query, keys, after = places_of_halves(batch["steps"])
        for row, steps in enumerate(batch["steps"][..., 0].tolist()):
            frame = steps[query[row]]
            again, *others = (steps[place] for place in keys[row].tolist())
            assert 4 == keys[row, 0] != query[row]
            assert again == frame
            assert others == sorted(others)
            assert len({*others, frame}) == 3
            late = frame >= 20  # half of 40 frames
            assert after[row] == late
            assert all((step >= 20) != late for step in others)
        labels += after.tolist()
    assert {*labels} == {0, 1}


def by_definition(model, batch, form: str, temperature: float = 0.1) -> tuple[dict, torch.Tensor]:
    """The three losses, item by item, and the keys that enter the queue."""
    clips, starts = batch["frames"], batch["steps"][:, :, 0].tolist()
    places = []
    for steps in starts:
        query = steps[:2].index(steps[4])
        other = steps[1 - query]
        late = steps[query] > other
        candidates = steps[2:4]
        second = 2 + candidates.index(min(candidates) if late else max(candidates))
        two = sorted([1 - query, second], key=lambda place: steps[place])
        places.append((query, [4, *two], int(late)))
    online, momentum = model.encoder, model.momentum.module
    queries = torch.stack([clips[i, [p[0]]] for i, p in enumerate(places)])
    features = online.clip_features(queries)[:, 0]
    with torch.no_grad():
        others = torch.stack([clips[i, p[1]] for i, p in enumerate(places)])
        encoded = momentum.clip_features(others)
        keys = {name: F.normalize(head(encoded), dim=-1) for name, head in momentum.heads.items()}
    values = {"inter": [], "intra": [], "order": []}
    for i, (_, _, label) in enumerate(places):
        q = {n: F.normalize(head(features[i]), dim=0) for n, head in online.heads.items()}
        right = (keys["inter"][i] @ q["inter"] / temperature).exp()
        wrong = (model.queues["inter"].features @ q["inter"] / temperature).exp().sum()
        values["inter"].append(-(right / (right + wrong)).log().mean())
        first, *others = (keys["intra"][i] @ q["intra"] / temperature).exp()
        others = torch.stack(others)
        if form == "code":
            values["intra"].append(-(first / (first + others)).log().mean())
        else:
            values["intra"].append(-(first / (first + others.sum())).log())
        triple = torch.cat([q["order"], *keys["order"][i, 1:]])
        values["order"].append(-model.order(triple).log_softmax(0)[label])
    return {n: torch.stack(v).mean() for n, v in values.items()}, keys["inter"].flatten(0, 1)


@pytest.mark.parametrize(("form", "clips"), [("code", []), ("paper", CLIPS)])
def test_first_step_from_the_definitions(recipe, form, clips):
    options = [*ONE, *clips, f"loss.seco.form={form}", "loss.seco.order=2", "optim.warmup_steps=0"]
    assert main([*recipe, "train.run_dir=run", *options]) == 0
    model, cfg = load_run("run", untrained=True)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    losses, keys = by_definition(model.train(), next(tuples(cfg).stream(1)), form)
    line = read_log("run")[0]
    for name, loss in losses.items():
        assert line[f"loss_{name}"] == pytest.approx(loss.item(), rel=1e-4), name
    total = losses["inter"] + losses["intra"] + 2 * losses["order"]
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
    queue = after["queues.inter.features"]
    torch.testing.assert_close(queue[:6], keys, rtol=1e-4, atol=1e-5)
    assert torch.equal(queue[6:], start["queues.inter.features"][6:])
    assert {key.split(".")[1] for key in after if key.startswith("queues")} == {"inter"}


def test_resumed_run_equals_the_uninterrupted_one(recipe):
    assert main([*recipe, "train.run_dir=whole"]) == 0

    with stopped_at(9), pytest.raises(Killed):
        main([*recipe, "train.run_dir=parts"])
    torch.rand(7)
    assert main([*recipe, "train.run_dir=parts", "--resume"]) == 0
    assert same(weights("whole"), weights("parts"))
    assert numbers("whole") == numbers("parts")


@pytest.mark.parametrize("used", ["inter", "intra", "order"])
def test_losses_without_weight_are_left_out(recipe, used):
    rest = [f"loss.seco.{name}=0" for name in ("inter", "intra", "order") if name != used]
    assert main([*recipe, "train.run_dir=run", *ONE, *rest]) == 0
    state = weights("run")
    assert {key.split(".")[2] for key in state if key.startswith("encoder.heads")} == {used}
    assert ("order.weight" in state) == (used == "order")
    initial = load_run("run", untrained=True)[0].state_dict()
    for key in (f"encoder.heads.{used}.2.weight", "encoder.backbone.layers.0.weight"):
        assert not torch.equal(initial[key], state[key])


@pytest.mark.parametrize(("name", "factor"), [("order", 0.6), ("inter", 0.9)])
def test_losses_fall_on_a_small_set(recipe, monkeypatch, name, factor):
    monkeypatch.setattr(training.train, "training_loader", partial(tuples, videos=8))
    rest = [f"loss.seco.{other}=0" for other in ("inter", "intra", "order") if other != name]
    options = ["train.steps=100", "train.log_every=20", "data.batch_size=4", "optim.lr=0.05"]
    options += ["loss.seco.queue_size=12"]
    assert main([*recipe, "train.run_dir=run", *options, *rest]) == 0
    first, *_, last = read_log("run")
    assert last["loss"] < factor * first["loss"]


@pytest.mark.process
def test_two_ranks_train_as_one(tmp_path, monkeypatch):
    """With frozen batch norms: losses, weights, momentum encoder and queue after two steps."""
    monkeypatch.chdir(tmp_path)
    for num in (1, 2):
        processes = launch(ranks_main, tmp_path, num=num)
        assert wait(processes) == [0] * num, said(processes[0])
    one, *two = (torch.load(tmp_path / f"ranks{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for what, expected in one.items():
        assert expected["finite"] == [True, True]
        for rank in two:
            np.testing.assert_allclose(rank[what]["loss"], expected["loss"], rtol=1e-6)
            for a, b in zip(rank[what]["losses"], expected["losses"], strict=True):
                assert a == pytest.approx(b, rel=1e-6)
            for key, value in expected["state"].items():
                got = rank[what]["state"][key]
                torch.testing.assert_close(got, value, rtol=1e-6, atol=1e-8, msg=key)
        assert expected["state"]["queues.inter.pointer"] == 2 * 4 * 3 % 20
        assert same(two[0][what]["state"], two[1][what]["state"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.clips=views", "loss.seco needs data.clips=tuples, got views"),
        ("model.encoder=fve", "loss.seco needs model.encoder=vclr, got fve"),
        ("data.segments=3", "data.segments: loss.seco compares the two halves of a video"),
        ("loss.vclr.weight=1", "loss.vclr cannot be combined with loss.seco"),
        ("loss.seco.temperature=0", "loss.seco.temperature: expected more than 0"),
        ("loss.seco.backend=cuda", "error: loss.seco: vclr_loss: inter: "),
    ],
)
def test_options_that_do_not_fit(recipe, override, message, capsys):
    assert main([*recipe, override]) == 2
    assert message in capsys.readouterr().err


def test_all_parts_are_zero(recipe, capsys):
    assert main([*recipe, *(f"loss.seco.{n}=0" for n in ("inter", "intra", "order"))]) == 2
    assert "loss.seco: inter, intra and order are all 0" in capsys.readouterr().err


def test_the_recipe_trains_on_files(video_folder, monkeypatch, capsys):
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    build_index(video_folder)
    small = ["model.backbone=resnet18", "model.projection_hidden=16", "augmentation.size=32"]
    small += ["data.cache_side=36", "data.batch_size=2", "data.workers=0", "data.engine=pyav"]
    small += ["loss.seco.queue_size=16", "train.epochs=null", "train.steps=2"]
    small += ["optim.warmup_epochs=0", "train.log_every=1", "train.precision=fp32"]
    arguments = ["recipes/seco.yaml", f"data.folder={video_folder}", "train.run_dir=run"]
    assert main([*arguments, *small, "--dry-run"]) == 0
    assert "2 videos x 5 single frames = 10 frames of 32 px" in capsys.readouterr().out
    assert main([*arguments, *small]) == 0
    assert all(line["loss"] > 0 for line in read_log("run"))
    model, _ = load_run("run")
    assert model.encode(torch.zeros(1, 5, 3, 32, 32, dtype=torch.uint8)).shape == (1, 5, 128)
