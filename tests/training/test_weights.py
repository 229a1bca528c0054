"""Backbone weights: how they are found in a file, what is refused, and that no code of the file
runs.
"""

import argparse
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow import narrow_resnet
from omegaconf import OmegaConf
from torch import nn

from training.models import SmallCNN, load_backbone_weights


def values(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }


STATE = values(SmallCNN(16))
OTHER = values(SmallCNN(16), 2)


def under(prefix, state=STATE):
    return {f"{prefix}{name}": value for name, value in state.items()}


def loaded(content, tmp_path, key=None, network=None, name="w.pt", **saving):
    network = network or SmallCNN(16)
    torch.save(content, tmp_path / name, **saving)
    report = load_backbone_weights(network, tmp_path / name, key)
    return report, network.state_dict()


def equal(state, expected=STATE):
    return all(torch.equal(state[name], value) for name, value in expected.items())


def deeper(state, block, last):
    """Names of a network with copies of ``block`` up to block ``last``."""
    stage, number = block.split(".")
    copies = {
        name.replace(f"{block}.", f"{stage}.{more}."): value
        for more in range(int(number) + 1, last + 1)
        for name, value in state.items()
        if name.startswith(f"{block}.")
    }
    return state | copies


PREFIXES = ["", "backbone.", "module.", "model.", "encoder_q.", "base_encoder.", "_orig_mod."]
PREFIXES += ["module.module.", "module.backbone.", "net.", "online_encoder.", "encoder.", "a.b.c."]
PREFIXES += ["_orig_mod.module.model.backbone.", "encoder_k.", "momentum_encoder.", "layers."]


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model", "net", "x"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_found_by_itself(prefix, container, tmp_path):
    state = under(prefix) | {
        "fc.weight": torch.zeros(2),
        f"{prefix}projector.0.bias": STATE["layers.0.weight"],
    }
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {container: state, "optimizer": optimizer, "epoch": 3} if container else state
    report, state = loaded(content, tmp_path)
    assert equal(state)
    assert report.taken == (f"{container}." if container else "") + prefix
    assert report.missing == []
    assert f"loaded from {report.taken}" in str(report) or not report.taken
    assert "projector.0.bias" in report.unexpected


@pytest.mark.parametrize(
    ("trained", "average"),
    [
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("model.encoder.", "model.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_encoder.net.", "target_encoder.net."),
        ("state_dict.", "state_dict_ema."),
        ("model.encoder.backbone.", "model.momentum.module.backbone."),
    ],
)
def test_a_network_goes_before_its_moving_average(trained, average, tmp_path):
    content = nested(under(trained) | under(average, OTHER))
    assert equal(loaded(content, tmp_path)[1])
    assert equal(loaded(content, tmp_path, average.strip("."))[1], OTHER)


def nested(flat):
    """The first name as a container."""
    content = {}
    for name, value in flat.items():
        top, _, rest = name.partition(".")
        content.setdefault(top, {})[rest] = value
    return content


def test_two_that_fit_are_not_guessed_between(tmp_path):
    content = {"student": under("module.backbone."), "teacher": under("backbone.", OTHER)}
    message = (
        r"under student.module.backbone.\* and teacher.backbone.\*; choose with model.weights_key="
    )
    with pytest.raises(ValueError, match=message):
        loaded(content, tmp_path)
    assert equal(loaded(content, tmp_path, "student")[1])
    assert equal(loaded(content, tmp_path, "teacher.backbone")[1], OTHER)
    with pytest.raises(
        ValueError, match=r"=coach is not in any prefix .* student\.module\.backbone"
    ):
        loaded(content, tmp_path, "coach")
    with pytest.raises(ValueError, match="weights_key=teach is not in any prefix"):  # whole names
        loaded(content, tmp_path, "teach")
    assert equal(
        loaded({"model": STATE, "net": dict(STATE)}, tmp_path)[1]
    )  # one network under two names


def test_one_of_two_streams_fits(tmp_path):
    flow = OTHER | {"layers.0.weight": torch.zeros(16, 2, 3, 3)}
    assert equal(loaded(under("flow.", flow) | under("rgb."), tmp_path)[1])


R18, R50 = values(narrow_resnet(18)), values(narrow_resnet(50))
R101 = deeper(R50, "layer3.5", 22)
R152 = deeper(deeper(R50, "layer2.3", 7), "layer3.5", 35)
R34 = deeper(
    deeper(deeper(deeper(R18, "layer1.1", 2), "layer2.1", 3), "layer3.1", 5), "layer4.1", 2
)


@pytest.mark.parametrize("end", ["layer4", "layer3", "conv4c"])
@pytest.mark.parametrize(
    ("depth", "state"),
    [
        (50, R101),
        (50, R152),
        (50, deeper(R50, "layer1.2", 3)),
        (50, R18),
        (50, R50 | {"conv1.bias": torch.zeros(16)}),
        (50, R50 | {"layer1.0.se.fc1.weight": torch.zeros(16)}),
        (50, R50 | {"layer5.0.conv1.weight": torch.zeros(16)}),
        (50, {k: v for k, v in R50.items() if not k.startswith("layer1")}),
        (50, {k: v for k, v in R50.items() if "running" not in k}),
        (18, R34),
        (18, R50),
    ],
    ids=["101", "152", "wider", "18", "bias", "se", "fifth", "gap", "norms", "34", "50"],
)
def test_other_architectures_are_refused(depth, state, end, tmp_path):
    network = narrow_resnet(depth, "all", end)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for prefix in ("", "module.encoder_q."):
        with pytest.raises(ValueError, match="another architecture"):
            loaded({"state_dict": under(prefix, state)}, tmp_path, network=network)
    assert equal(network.state_dict(), before)


def test_half_of_a_network_is_refused(tmp_path):
    cut = values(narrow_resnet(50, "all", "conv4c"))
    with pytest.raises(ValueError, match="of the backbone's 265 entries are not under"):
        loaded(cut, tmp_path, network=narrow_resnet(50))


@pytest.mark.parametrize("end", ["layer4", "layer3", "conv4c"])
def test_heads_and_stages_that_are_left_out_are_not_used(end, tmp_path):
    heads = {"fc.weight": 1, "projector.0.weight": 2, "predictor.bn.num_batches_tracked": 3}
    heads |= {"queue": 4, "queue_ptr": 5, "momentum_encoder.conv1.weight": 6, "head.mlp.bias": 7}
    content = R50 | {name: torch.zeros(size) for name, size in heads.items()}
    network = narrow_resnet(50, "all", end)
    report, state = loaded(content, tmp_path, network=network)
    assert equal(R50, state)
    assert report.missing == []
    assert "fc (1)" in str(report)


def test_halves_are_widened_and_codes_refused(tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}
    _, state = loaded(half, tmp_path)
    assert state["layers.0.weight"].dtype == torch.float32
    assert torch.equal(state["layers.0.weight"], half["layers.0.weight"].float())
    with pytest.raises(ValueError, match="quantised"):
        loaded(STATE | {"layers.0.weight": torch.zeros(16, 3, 3, 3, dtype=torch.int8)}, tmp_path)


class Attributes(dict):
    """Like EasyDict and yacs' CfgNode: a dict whose entries are also attributes."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, path=Path("x")),
    "numpy": {"acc": np.float64(0.5), "n": np.int64(3), "flag": np.bool_(True), "x": np.arange(3)},
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, a=[1]),
    "path": Path("a/b"),
    "omegaconf": OmegaConf.create({"a": {"b": [1, "x"]}, "c": None}),
    "attributes": Attributes(a=1, b=Path("x")),
    "slots": Slots(),
    "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
    "dtype": torch.float16,
    "complex": 1j,
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_other_values_are_passed_over(beside, old, tmp_path):
    content = {"args": BESIDE[beside], "state_dict": under("module."), "epoch": 3}
    allowed = set(torch.serialization.get_safe_globals())
    report, state = loaded(content, tmp_path, _use_new_zipfile_serialization=not old)
    assert equal(state)
    assert report.taken == "state_dict.module."
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_module_is_passed_over_or_refused(tmp_path):
    content = {"state_dict": STATE, "module": nn.Linear(2, 2)}
    assert equal(loaded(content, tmp_path)[1])
    with pytest.raises(ValueError, match="Only persistent_load of storage is allowed"):
        loaded(content, tmp_path, _use_new_zipfile_serialization=False)


class Runs:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.process
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("call", [os.system, os.mkdir, exec, eval, Path.touch, "subprocess"])
def test_nothing_in_a_file_runs(call, old, tmp_path):
    marker = tmp_path / "marker"
    if call == "subprocess":
        import subprocess

        bad = Runs(subprocess.check_call, ["touch", str(marker)])
    else:
        code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
        argument = {os.system: f"touch '{marker}'", exec: code, eval: code, Path.touch: marker}
        bad = Runs(call, argument.get(call, str(marker)))
    network = SmallCNN(16)
    torch.save(
        {"state_dict": STATE, "x": bad}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old
    )
    # torch.load refuses names of the module os, and calls of the result of a call (Path.touch).
    if call in (os.system, os.mkdir, Path.touch):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint of plain tensors"):
            load_backbone_weights(network, tmp_path / "w.pt")
    else:
        load_backbone_weights(network, tmp_path / "w.pt")
        assert equal(network.state_dict())
    assert not marker.exists()
    pickle.loads(pickle.dumps(bad))
    assert marker.exists(), "the file was harmless"


def test_safetensors_and_npz(tmp_path):
    from safetensors.torch import save_file

    save_file(under("backbone."), tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", names=["a"], **{k: v.numpy() for k, v in STATE.items()})
    for name in ("w.safetensors", "w.npz"):
        network = SmallCNN(16)
        load_backbone_weights(network, tmp_path / name)
        assert equal(network.state_dict())
    np.savez(tmp_path / "w.npz", x=np.array([Runs(os.mkdir, str(tmp_path / "ran"))], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone_weights(SmallCNN(16), tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("share", [0, 0.002, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named_so(share, name, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / name
    if name.endswith("pth"):
        torch.save(STATE, file, _use_new_zipfile_serialization=name == "new.pth")
    elif name == "w.npz":
        np.savez(file, **{k: v.numpy() for k, v in STATE.items()})
    else:
        save_file(STATE, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"it is damaged or cut off, .* get it again$"):
        load_backbone_weights(SmallCNN(16), file)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.npz"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"PK\x03\x04", b"\x80\x02", b"\0" * 99]
)
def test_files_that_are_no_checkpoint(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_backbone_weights(SmallCNN(16), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a dictionary, got list"),
        (torch.zeros(1), "expected a dictionary, got Tensor"),
        (nn.Linear(1, 1), r"save model.state_dict\(\)"),
        ({"state_dict": {}, "opt": nn.Linear(1, 1)}, "no tensors in it"),
        ({"epoch": 3}, "no tensors in it, top-level keys epoch"),
        ({"a": torch.zeros(1)}, "nothing matches"),
    ],
)
def test_contents_that_are_no_weights(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loaded(content, tmp_path)
