"""Files of CARL_code: synthetic configurations, pickles and checkpoints with its layouts."""

import json
import os
import pickle
import sys
import types
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from narrow import NARROW_RESNET
from omegaconf import OmegaConf
from safetensors import safe_open

from training.carl_code.__main__ import main
from training.carl_code.recipe import convert_config
from training.export import main as export
from training.models import build_model, resnet
from training.recipe.load import load_config, loss_terms
from training.runs.model import initial_model, load_run
from training.support.command import UserError

POURING = {  # the keys of scl_transformer_config.yml
    "DATASETS": ["pouring"],
    "PATH_TO_DATASET": "pouring",
    "TRAINING_ALGO": "scl",
    "IMAGE_SIZE": 32,
    "USE_AMP": True,
    "TRAIN": {"MAX_EPOCHS": 500, "BATCH_SIZE": 1, "NUM_FRAMES": 6},
    "EVAL": {"VAL_INTERVAL": 50, "TASKS": ["kendalls_tau"]},
    "MODEL": {
        "EMBEDDER_TYPE": "transformer",
        "BASE_MODEL": {"NETWORK": "Resnet50_byol", "LAYER": 3, "FRAMES_PER_BATCH": 40},
        "TRAIN_BASE": "frozen",
        "EMBEDDER_MODEL": {
            "HIDDEN_SIZE": 16,
            "D_FF": 32,
            "NUM_HEADS": 2,
            "NUM_LAYERS": 2,
            "FC_LAYERS": [[8, True], [8, True]],
            "CAPACITY_SCALAR": 2,
            "EMBEDDING_SIZE": 12,
            "FC_DROPOUT_RATE": 0.1,
            "USE_BN": True,
        },
        "L2_NORMALIZE": True,
        "PROJECTION": True,
        "PROJECTION_HIDDEN_SIZE": 512,
        "PROJECTION_SIZE": 10,
    },
    "SCL": {
        "LABEL_VARIENCE": 10.0,
        "SOFTMAX_TEMPERATURE": 0.1,
        "POSITIVE_TYPE": "gauss",
        "NEGATIVE_TYPE": "single_noself",
        "POSITIVE_WINDOW": 5,
    },
    "OPTIMIZER": {
        "TYPE": "AdamOptimizer",
        "WEIGHT_DECAY": 1e-5,
        "GRAD_CLIP": 10,
        "LR": {"INITIAL_LR": 1e-4, "DECAY_TYPE": "cosine", "WARMUP_LR": 1e-4},
    },
    "DATA": {
        "SAMPLING_STRATEGY": "time_augment",
        "SAMPLING_REGION": 1.5,
        "CONSISTENT_OFFSET": 0.2,
        "NUM_CONTEXTS": 1,
        "NUM_WORKERS": 4,
    },
    "AUGMENTATION": {"STRENGTH": 1.0, "RANDOM_FLIP": True, "HUE": False},
    "LOGGING": {"REPORT_INTERVAL": 20},
    "NEW_KEY": 1,
}


def test_a_configuration_becomes_a_recipe(tmp_path, capsys):
    (tmp_path / "released.yml").write_text(OmegaConf.to_yaml(OmegaConf.create(POURING)))
    out = tmp_path / "mine.yaml"
    assert main(["recipe", str(tmp_path / "released.yml"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == "unknown, left out: NEW_KEY\n"
    assert "MODEL.PROJECTION_HIDDEN_SIZE" in said.out
    cfg = load_config(out)
    assert cfg.loss.scl.weight == 1
    assert (cfg.loss.scl.variance, cfg.loss.scl.negatives) == (10, "cross")
    assert (cfg.model.fc_size, cfg.model.positions) == (16, "released")
    assert (cfg.model.projection_hidden, cfg.model.projection_size) == (10, 12)
    assert (cfg.data.crop_base, cfg.data.alpha, cfg.data.batch_size) == ("video", 1.5, 1)
    assert cfg.train.chunk_frames == 80  # 40 time steps of two views
    assert (cfg.augmentation.hue, cfg.augmentation.flip) == (0, 0.5)
    assert main(["recipe", str(tmp_path / "released.yml"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_other_configurations():
    finegym = convert_config(POURING | {"DATASETS": ["finegym"]}).recipe
    assert finegym["data"]["crop_base"] == "clip"
    tcc = convert_config(
        POURING
        | {"TRAINING_ALGO": "tcc", "TCC": {"LOSS_TYPE": "regression_mse_var"}, "USE_AMP": False}
    ).recipe
    assert tcc["data"]["clips"] == "videos"
    assert tcc["loss"]["tcc"]["pairs"] == "all"
    assert tcc["train"]["precision"] == "fp32"
    for change, message in (
        ({"TRAINING_ALGO": "simclr"}, "scl, tcc, tcn, classification can be converted"),
        ({"TRAINING_ALGO": "classification"}, "MODEL.L2_NORMALIZE is true"),
        ({"OPTIMIZER": {"TYPE": "MomentumOptimizer"}}, "AdamOptimizer can be converted"),
        ({"SCL": {"NEGATIVE_TYPE": "all"}}, "SCL.NEGATIVE_TYPE is 'all'; only single_noself"),
        ({"SCL": {"POSITIVE_TYPE": "window"}}, "the released loss is 0 for all others"),
    ):
        with pytest.raises(UserError, match=message):
            convert_config(POURING | change)


def supervised(share=1.0):
    """The keys of classification_transformer_config.yml that differ from those of SCL."""
    return POURING | {
        "TRAINING_ALGO": "classification",
        "SSL": False,
        "MODEL": POURING["MODEL"] | {"L2_NORMALIZE": False, "PROJECTION": False},
        "DATA": POURING["DATA"] | {"CONSISTENT_OFFSET": 0.0, "FRACTION": share},
        "EVAL": {"CLASS_NUM": 99},
        "AUGMENTATION": {
            "BRIGHTNESS": True,
            "BRIGHTNESS_MAX_DELTA": 0.125,
            "CONTRAST_MAX_DELTA": 0.4,
            "HUE": False,
            "SATURATION": False,
            "RANDOM_CROP": False,
        },
    }


def test_a_supervised_configuration(tmp_path, capsys):
    (tmp_path / "released.yml").write_text(OmegaConf.to_yaml(OmegaConf.create(supervised(0.1))))
    out = tmp_path / "mine.yaml"
    assert main(["recipe", str(tmp_path / "released.yml"), "--out", str(out)]) == 0
    assert capsys.readouterr().err == "unknown, left out: NEW_KEY\n"
    cfg = load_config(out)
    assert [name for name, *_ in loss_terms(cfg.loss)] == ["classification"]
    options = cfg.loss.classification
    assert (options.label_share, options.dropout, options.classes) == (0.1, 0.1, None)
    aug = cfg.augmentation
    assert (aug.brightness, aug.contrast, aug.hue, aug.saturation) == (0.125, 0.4, 0, 0)
    assert (aug.jitter, aug.grayscale, aug.blur, aug.flip) == (1, 0, 0, 0.5)
    assert (tuple(aug.scale), tuple(aug.ratio)) == ((1, 1), (1, 1))
    assert (cfg.data.clips, cfg.data.beta) == ("views", 0)


@pytest.fixture
def pickles(tmp_path):
    """train.pkl as a list with tensors, val.pkl as Penn Action's tuple with a float tensor."""
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"x")

    def entry(name, labels, **more):
        return {"id": 0, "name": name, "video_file": f"videos/{name}.mp4"} | {
            "frame_label": labels,
            "seq_len": len(labels),
            **more,
        }

    train = [entry("a", torch.tensor([0, 0, 1, 2])), entry("b", np.array([0, 1, 1]))]
    penn = entry("c", torch.tensor([-1.0, 0.0, 1.0]), action_label=3) | {"name": "0007_bowl"}
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(train))
    (tmp_path / "val.pkl").write_bytes(pickle.dumps(([penn], [[0]])))
    return tmp_path


def test_label_pickles_become_labels(pickles, capsys):
    arguments = ["--train", str(pickles / "train.pkl"), "--test", str(pickles / "val.pkl")]
    assert main(["labels", str(pickles), *arguments]) == 0
    labels = json.loads((pickles / "labels.json").read_text())
    assert labels["classes"] == {
        "all": ["phase 0", "phase 1", "phase 2"],
        "bowl": ["phase 0", "phase 1"],
    }
    assert labels["videos"] == {
        "videos/a.mp4": {"action": "all", "split": "train", "phases": [0, 0, 1, 2]},
        "videos/b.mp4": {"action": "all", "split": "train", "phases": [0, 1, 1]},
        "videos/c.mp4": {"action": "bowl", "split": "test", "phases": [-1, 0, 1]},
    }
    out = pickles / "inner.json"  # the folder of the videos themselves
    inner = ["labels", str(pickles / "videos"), *arguments, "--out", str(out)]
    assert main(inner) == 0
    assert [*json.loads(out.read_text())["videos"]] == ["a.mp4", "b.mp4", "c.mp4"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_something_is_refused(pickles, capsys, monkeypatch):
    monkeypatch.chdir(pickles)
    (pickles / "evil.pkl").write_bytes(pickle.dumps([{"video_file": Evil(), "frame_label": 1}]))
    assert main(["labels", ".", "--train", "evil.pkl"]) == 2
    assert "it would run posix.system" in capsys.readouterr().err
    torch.save({"model_state": {}, "cfg": Evil()}, "evil.pth")
    assert main(["checkpoint", "evil.pth", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "cannot be read as a checkpoint of CARL_code: it would run posix.system" in error
    # The bytes of a tensor are themselves a pickle.
    inside = pickle.dumps([{"video_file": "a", "frame_label": _Storage()}])
    (pickles / "inside.pkl").write_bytes(inside)
    assert main(["labels", ".", "--train", "inside.pkl"]) == 2
    assert not (pickles / "pwned").exists()
    assert not (pickles / "run").exists()


class _Storage:
    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Evil()),)


def test_other_files_say_what_they_are_not(pickles, capsys):
    (pickles / "text.pkl").write_text("no pickle")
    (pickles / "dict.pkl").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"weights": 1}, pickles / "other.pth")
    (pickles / "text.pth").write_text("no checkpoint")
    (pickles / "empty.pth").touch()
    (pickles / "cut.pth").write_bytes((pickles / "other.pth").read_bytes()[:300])
    for arguments, message in (
        (["labels", "--train", "text.pkl"], "is not a label file"),
        (["labels", "--train", "dict.pkl"], "frame_label and video_file"),
        (["labels", "--train", "none.pkl"], "No such file"),
        (["checkpoint", "other.pth", "--out", "run"], "has model_state and cfg"),
        (["checkpoint", "text.pth", "--out", "run"], "not a file of torch.save, or is cut off"),
        (["checkpoint", "empty.pth", "--out", "run"], "not a file of torch.save, or is cut off"),
        (["checkpoint", "cut.pth", "--out", "run"], "not a file of torch.save, or is cut off"),
        (["checkpoint", "none.pth", "--out", "run"], "No such file"),
    ):
        what, *rest = [str(pickles / one) if "." in one else one for one in arguments]
        folder = [str(pickles)] if what == "labels" else []
        assert main([what, *folder, *rest]) == 2
        assert message in capsys.readouterr().err


def released_names(state):
    """This project's weights under CARL_code's names, derived from its modules."""
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6}
    out = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            child, _, rest = rest.partition(".")
            where = "res_finetune" if child == "layer4" else f"backbone.{children[child]}"
            out[f"{where}.{rest}"] = value
        elif part == "fc_block":
            index, _, kind = rest.partition(".")
            where = "video_emb" if index == "8" else f"fc_layers.{index}"
            out[f"embed.{where}.{kind}"] = value
        elif part == "layers":
            layer, inner, kind = rest.split(".")
            start = f"embed.video_encoder.enc_layers.{layer}"
            if inner == "qkv":
                for letter, third in zip("QKV", value.chunk(3), strict=True):
                    out[f"{start}.self_att.linear_{letter}2d.{kind}"] = third
            else:
                theirs = {
                    "out": "self_att.linear_d2Q",
                    "ff1": "feed_forward.fc1",
                    "ff2": "feed_forward.fc2",
                    "attention_norm": "res_layer0.norm",
                    "ff_norm": "res_layer1.norm",
                }
                out[f"{start}.{theirs[inner]}.{kind}"] = value
        elif part == "heads":
            out[f"classifier.fc_layers.{rest.removeprefix('classification.')}"] = value
        elif part == "embedding":
            out[f"embed.embedding_layer.{rest}"] = value
        else:
            out[f"ssl_projection.net.{rest}"] = value
    return out


def released_forward(state, features, train_frames):
    """The released embedder after the backbone, from its formulas: (T, C) to (T, E)."""
    x = features
    for linear, norm in ((1, 2), (5, 6)):
        name = f"embed.fc_layers.{linear}"
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
        name = f"embed.fc_layers.{norm}"
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    x = F.linear(x, state["embed.video_emb.weight"], state["embed.video_emb.bias"])
    t, d = x.shape
    place = np.linspace(0, train_frames - 1, t)
    angle = place[:, None] / 10000 ** (np.arange(d) / d)
    x = x + torch.from_numpy(np.where(np.arange(d) % 2, np.cos(angle), np.sin(angle))).float()
    for layer in range(2):
        start = f"embed.video_encoder.enc_layers.{layer}."

        def linear(name, x, start=start):
            return F.linear(x, state[f"{start}{name}.weight"], state[f"{start}{name}.bias"])

        def norm(index, x, start=start, d=d):
            name = f"{start}res_layer{index}.norm"
            return F.layer_norm(x, (d,), state[f"{name}.weight"], state[f"{name}.bias"])

        y = norm(0, x)
        heads = [linear(f"self_att.linear_{one}2d", y).view(t, 2, d // 2) for one in "QKV"]
        q, k, v = (one.transpose(0, 1) for one in heads)
        mixed = (q @ k.mT / (d // 2) ** 0.5).softmax(-1) @ v
        x = x + linear("self_att.linear_d2Q", mixed.transpose(0, 1).reshape(t, d))
        x = x + linear("feed_forward.fc2", linear("feed_forward.fc1", norm(1, x)).relu())
    return F.linear(x, state["embed.embedding_layer.weight"], state["embed.embedding_layer.bias"])


@pytest.fixture
def write_released(tmp_path, monkeypatch):
    """Writes a checkpoint as CARL_code does, including its EasyDict and the arguments."""

    class EasyDict(dict):
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)

    def easy(config):
        values = {k: easy(v) if isinstance(v, dict) else v for k, v in config.items()}
        made = EasyDict(values)
        made.__dict__.update(values)
        return made

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)

    def write(config, *overrides):
        recipe = OmegaConf.create(convert_config(config).recipe)
        (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(recipe))
        torch.manual_seed(0)
        model = build_model(load_config(tmp_path / "mine.yaml", overrides)).eval()
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.uniform_(-1, 1)
        state = released_names(model.state_dict())
        if not config["MODEL"]["PROJECTION"]:
            state = {k: v for k, v in state.items() if not k.startswith("ssl_projection")}
        config = easy(config)
        config["args"] = Namespace(workdir="/data", local_rank=0)
        torch.save(
            {"epoch": 150, "model_state": state, "optimizer_state": {"state": {}}, "cfg": config},
            tmp_path / "checkpoint_epoch_00150.pth",
        )
        monkeypatch.delitem(sys.modules, "easydict")
        return state, model

    return write


@pytest.fixture
def released(write_released):
    return write_released(POURING)


def test_a_supervised_checkpoint_becomes_a_run(write_released, capsys):
    _, original = write_released(supervised(), "loss.classification.classes=7")
    assert main(["checkpoint", "checkpoint_epoch_00150.pth", "--out", "run"]) == 0
    model, cfg = load_run("run")
    assert cfg.loss.classification.classes == 7
    assert model.heads["classification"][1].weight.shape == (7, 12)
    for name, value in original.state_dict().items():
        if not name.startswith("projection."):
            assert torch.equal(model.state_dict()[name], value), name


def test_a_checkpoint_becomes_a_run(released, tmp_path, capsys):
    state, original = released
    assert main(["checkpoint", "checkpoint_epoch_00150.pth", "--out", "run"]) == 0
    model, cfg = load_run("run")
    assert (cfg.model.positions, cfg.data.num_frames) == ("released", 6)
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for weights in ("run", "run/model.safetensors"):  # for training on another data set
        start = [f"model.weights={weights}", "model.weights_parts=all"]
        for name, value in initial_model(load_config("mine.yaml", start)).state_dict().items():
            assert torch.equal(original.state_dict()[name], value), name
    frames = torch.randint(0, 256, (1, 9, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        features = model.backbone(model._normalise(frames[0]))
        expected = released_forward(state, features, 6)
        torch.testing.assert_close(model.encode(frames)[0], expected, rtol=1e-4, atol=1e-5)
    assert main(["checkpoint", "checkpoint_epoch_00150.pth", "--out", "run"]) == 2
    assert "run exists already" in capsys.readouterr().err
    assert export(["run", "out.safetensors"]) == 0
    for path in ("out.safetensors", "run/model.safetensors"):
        with safe_open(path, "pt") as file:
            assert {*file.keys()} == original.state_dict().keys()
            assert torch.equal(file.get_tensor("embedding.weight"), original.embedding.weight)
            assert OmegaConf.create(file.metadata()["config"]).model.positions == "released"
    assert export(["run", "out.safetensors"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert export(["nowhere", "other.safetensors"]) == 2


def test_weights_that_do_not_fit_are_named(released, capsys):
    state, _ = released
    odd = dict(state) | {"something.else": torch.zeros(1)}
    torch.save({"model_state": odd, "cfg": POURING}, "odd.pth")
    assert main(["checkpoint", "odd.pth", "--out", "run"]) == 2
    assert "unknown weights something.else (1 in total)" in capsys.readouterr().err
    wide = {**POURING, "SCL": POURING["SCL"], "MODEL": {**POURING["MODEL"], "PROJECTION_SIZE": 11}}
    torch.save({"model_state": state, "cfg": wide}, "wide.pth")
    assert main(["checkpoint", "wide.pth", "--out", "run"]) == 2
    assert "of another model" in capsys.readouterr().err
