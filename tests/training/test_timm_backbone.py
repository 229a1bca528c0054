"""Networks of timm, with random weights: skipped without the extra "timm"."""

import copy

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm", reason='needs pip install "fastseq[timm]"', exc_type=ImportError)

from training.models import load_backbone_weights  # noqa: E402
from training.models.sync_batch_norm import sync_batch_norms  # noqa: E402
from training.models.timm_backbone import TimmBackbone  # noqa: E402
from training.support.command import UserError  # noqa: E402

SIZE = 64
VIT = "vit_tiny_patch16_224"
# Name -> stride and channels of the last map.
NETWORKS = {
    "resnet18": (32, 512),
    "mobilenetv3_small_050": (32, 288),
    "convnext_atto": (32, 320),
    VIT: (16, 192),
}


def theirs(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, pretrained=False, **options).eval()


def ours(name: str, train_from: str = "all", end: str = "last") -> TimmBackbone:
    torch.manual_seed(2)
    return TimmBackbone(f"timm:{name}", SIZE, train_from, end, "mean").eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_equal_timms_with_the_weights_of_its_file(name, tmp_path):
    network = theirs(name, **({"img_size": SIZE} if name == VIT else {}))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model = ours(name)
    report = load_backbone_weights(model, tmp_path / "w.pt")
    assert (report.taken, report.missing) == ("", [])
    assert set(model.left_out) == set(report.unexpected)
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        got = model.maps(x)
        if name == VIT:
            tokens = network.forward_features(x)[:, 1:]
            expected = tokens.transpose(1, 2).unflatten(2, (4, 4))
        else:
            expected = network.forward_intermediates(x, intermediates_only=True)[-1]
    torch.testing.assert_close(got, expected)
    stride, channels = NETWORKS[name]
    assert (model.stride, model.out_channels) == (stride, channels)
    assert got.shape == (2, channels, SIZE // stride, SIZE // stride)


LAYOUTS = {
    "MAE": ("model.", {"decoder_embed.weight": (512, 192), "mask_token": (1, 1, 512)}, None),
    "DINO": ("teacher.backbone.", {}, "teacher"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_vision_transformers_at_another_size(layout, tmp_path):
    prefix, heads, key = LAYOUTS[layout]
    state = theirs(VIT).state_dict()  # of 224 pixels: 14 x 14 patches
    content = {f"{prefix}{k}": v for k, v in state.items() if not k.startswith("head.")}
    content |= {f"{prefix}{k}": torch.zeros(shape) for k, shape in heads.items()}
    if layout == "DINO":
        student = {k.replace("teacher", "student"): v + 1 for k, v in content.items()}
        content |= student | {"teacher.head.mlp.0.weight": torch.zeros(4, 4)}
    torch.save(content, tmp_path / "w.pt")
    model = ours(VIT)
    report = load_backbone_weights(model, tmp_path / "w.pt", key)
    assert (report.taken, report.missing) == (prefix, [])
    got = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in got.items() if k != "pos_embed")
    places = timm.layers.resample_abs_pos_embed(state["pos_embed"], [4, 4], [14, 14])
    torch.testing.assert_close(got["pos_embed"], places)
    assert got["pos_embed"].shape == (1, 17, 192)


def test_what_is_trained():
    trained = {
        k.partition(".")[0]
        for k, p in ours("resnet18", "last").named_parameters()
        if p.requires_grad
    }
    assert trained == {"layer4"}
    none = ours("resnet18", "none").train()
    assert none.all_frozen
    assert not any(m.training for m in none.modules())
    whole = ours(VIT, "blocks.10")
    trained = {k for k, p in whole.named_parameters() if p.requires_grad}
    assert {k.split(".")[1] for k in trained if k.startswith("blocks.")} == {"10", "11"}
    assert {k.split(".")[0] for k in trained} == {"blocks", "norm"}


def test_an_earlier_map_and_a_copy():
    model = ours("resnet18", "all", "stride16")
    assert (model.stages[-1], model.stride, model.out_channels) == ("layer3", 16, 256)
    x = torch.randn(1, 3, SIZE, SIZE)
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x), model(x))
    with torch.no_grad():
        other.conv1.weight.zero_()
    assert not torch.equal(other(x), model(x))


def test_names_that_timm_has_not():
    with pytest.raises(UserError, match="has no resnet19"):
        ours("resnet19")
    with pytest.raises(UserError, match="timm:resnet18 has stages act1, layer1"):
        ours("resnet18", "layer9")


def test_its_batch_norms_with_an_activation_are_not_shared_between_ranks():
    model = nn.Module()
    model.backbone = ours("mobilenetv3_small_050")
    with pytest.raises(UserError, match="mobilenetv3_small_050: BatchNormAct2d cannot share"):
        sync_batch_norms(model.train(), torch.device("cpu"))
