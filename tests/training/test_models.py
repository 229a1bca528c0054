import math

import pytest
import torch
from narrow import narrow_resnet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.models import CarlModel, ResNet, SmallCNN, build_model, load_backbone_weights
from training.models.positions import frame_positions, sine_cosine
from training.models.transformer import TransformerLayer
from training.recipe.load import load_config


def small_model(**options) -> CarlModel:
    torch.manual_seed(0)
    sizes = {"fc_size": 16, "layers": 2, "hidden_size": 16, "heads": 2, "ff_size": 32}
    return CarlModel(SmallCNN(16), num_frames=6, embedding_size=8, **sizes | options)


def clip(n: int, t: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n * 100 + t)
    return torch.randint(0, 256, (n, t, 3, size, size), dtype=torch.uint8, generator=generator)


def first_rows_valid(n: int, t: int, lengths: list[int]) -> torch.Tensor:
    return torch.arange(t) < torch.tensor(lengths)[:, None]


# Positions


def test_released_positions_have_the_values_of_the_released_code():
    # Row 1 of two tables printed by the released code: 8 channels, 4 frames in training, and 5
    # frames at test time after training on 240.
    row = sine_cosine(frame_positions(4, 4, torch.tensor([4]), True), 8, "released")[0, 1]
    expected = [0.8415, 0.9504, 0.0998, 0.9995, 0.01, 1.0, 0.001, 1.0]
    torch.testing.assert_close(row, torch.tensor(expected), atol=6e-5, rtol=0)
    row = sine_cosine(frame_positions(5, 240, torch.tensor([5]), False), 8, "released")[0, 1]
    expected = [-0.0597, 0.999, -0.3033, -0.3133, 0.5626, 0.9822, 0.0597, 0.9998]
    torch.testing.assert_close(row, torch.tensor(expected), atol=1e-4, rtol=0)


def test_vaswani_positions_pair_sine_and_cosine_of_one_frequency():
    encoded = sine_cosine(torch.tensor([0.0, 1.0, 7.5]), 6)
    for row, p in enumerate((0.0, 1.0, 7.5)):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert encoded[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert encoded[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_whole_videos_are_stretched_to_the_training_range_by_their_own_length():
    places = frame_positions(5, 11, torch.tensor([5, 3, 1]), training=False)
    assert places[0].tolist() == [0, 2.5, 5, 7.5, 10]
    assert places[1, :3].tolist() == [0, 5, 10]
    assert places[2, 0] == 0
    assert frame_positions(11, 11, torch.tensor([4]), training=True)[0].tolist() == [*range(11)]


# ResNet


def resnet50_keys() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet-50 state dict, from its published structure."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    channels_in = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for index in range(count):
            block = f"layer{stage}.{index}"
            shapes[f"{block}.conv1.weight"] = (width, channels_in, 1, 1)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            norm(f"{block}.bn1", width)
            norm(f"{block}.bn2", width)
            norm(f"{block}.bn3", 4 * width)
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, channels_in, 1, 1)
                norm(f"{block}.downsample.1", 4 * width)
            channels_in = 4 * width
    return shapes


def test_resnet50_has_torchvisions_keys_and_shapes():
    expected = resnet50_keys()
    assert len(expected) == 318  # torchvision's 320 without fc.weight and fc.bias
    assert {k: tuple(v.shape) for k, v in ResNet(50).state_dict().items()} == expected


def test_resnet18_has_torchvisions_size():
    # 11,689,512 as published; the classifier has 512 * 1000 + 1000 of them.
    model = ResNet(18)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 513_000
    keys = model.state_dict().keys()
    assert len(keys) == 122 - 2
    assert "layer2.0.downsample.1.running_var" in keys
    assert "layer1.0.downsample.0.weight" not in keys


def test_carl_recipe_has_the_released_number_of_parameters():
    cfg = load_config("recipes/carl.yaml")
    model = build_model(cfg, load_weights=False)
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.backbone.named_children()
    }
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    assert (total, frozen, sizes["layer4"]) == (27_388_608, 8_543_296, 14_964_736)
    assert total - frozen - sizes["layer4"] == 3_880_576  # projection head included


def test_resnet_pools_the_maximum_over_space():
    model = narrow_resnet(18, "all").eval()
    maps = []
    model.layer4.register_forward_hook(lambda module, args, out: maps.append(out))
    out = model(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(out, maps[0].amax((2, 3)))


@pytest.mark.parametrize(
    ("train_from", "trained"),
    [
        ("all", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("layer3", {"layer3", "layer4"}),
        ("layer4", {"layer4"}),
        ("none", set()),
    ],
)
def test_frozen_stages_keep_weights_and_statistics(train_from, trained):
    model = narrow_resnet(18, train_from).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = model(torch.rand(4, 3, 32, 32))
    if trained:
        out.sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    else:
        assert not out.requires_grad
    moved = {
        key.split(".")[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == trained


# Weight files


def save_as(layout: str, state: dict, path) -> None:
    if layout == "torchvision":
        content = dict(state)
    elif layout == "torchvision under DataParallel":
        content = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    elif layout == "MoCo":
        content = {
            "epoch": 200,
            "state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()},
        }
        content["state_dict"]["module.queue"] = torch.zeros(3)
    elif layout == "BYOL":
        content = {"model": {f"module.encoder.{k}": v for k, v in state.items()}}
        content["model"] |= {f"module.encoder_k.{k}": v + 1 for k, v in state.items()}
    else:  # SimCLR
        renamed = {("v1.weight" if k == "conv1.weight" else k): v for k, v in state.items()}
        content = {"state_dict": {f"encoder.{k}": v for k, v in renamed.items()}}
    torch.save(content, path)


TAKEN = {
    "torchvision": "",
    "torchvision under DataParallel": "state_dict.module.",
    "MoCo": "state_dict.module.encoder_q.",
    "BYOL": "model.module.encoder.",
    "SimCLR": "state_dict.encoder.",
}


@pytest.mark.parametrize("layout", TAKEN)
def test_weights_load_from_every_layout(tmp_path, layout):
    torch.manual_seed(1)
    source = narrow_resnet(18).state_dict()
    source = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in source.items()}
    with_classifier = source | {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    save_as(layout, with_classifier, tmp_path / "w.pt")
    model = narrow_resnet(18)
    report = load_backbone_weights(model, tmp_path / "w.pt")
    assert report.taken == TAKEN[layout]
    assert (report.loaded, report.missing) == (120, [])
    assert report.unexpected == ["fc.weight", "fc.bias"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_weights_that_are_partly_there_are_reported(tmp_path, caplog):
    state = narrow_resnet(18).state_dict()
    del state["layer4.1.conv2.weight"], state["bn1.num_batches_tracked"]
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pt")
    report = load_backbone_weights(narrow_resnet(18), tmp_path / "w.pt")
    assert report.loaded == 118
    assert report.missing == ["layer4.1.conv2.weight"]
    assert report.unexpected == ["extra.weight"]
    assert "layer4.1.conv2.weight" in caplog.text


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="nothing matches"):
        load_backbone_weights(narrow_resnet(18), tmp_path / "other.pt")
    torch.save(narrow_resnet(50).state_dict(), tmp_path / "r50.pt")
    with pytest.raises(ValueError, match="another architecture"):
        load_backbone_weights(narrow_resnet(18), tmp_path / "r50.pt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone_weights(narrow_resnet(18), tmp_path / "nowhere.pt")


# Small CNN


def test_small_cnn_keeps_where_things_are():
    model = SmallCNN(64).eval()
    assert model.out_features == 512
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :8, :8] = 1
    images[1, :, -8:, -8:] = 1
    maps = model(images).view(2, 32, 4, 4)
    difference = (maps[0] - maps[1]).abs().sum(0)
    assert difference[0, 0] > 0
    assert difference[3, 3] > 0
    assert torch.equal(difference[0, 3], torch.zeros(()))


@pytest.mark.parametrize(
    ("size", "train_from", "message"),
    [
        (60, "all", "SmallCNN: image_size"),
        (0, "all", "SmallCNN: image_size"),
        (64, "layer4", "model.train_from: small_cnn is one stage; expected all, none or batch"),
    ],
)
def test_small_cnn_refuses_what_it_cannot_do(size, train_from, message):
    with pytest.raises(ValueError, match=message):
        SmallCNN(size, train_from)


# Transformer


def test_layer_equals_its_formula():
    torch.manual_seed(0)
    layer = TransformerLayer(6, 2, 10, dropout=0.5).double().eval()
    for p in layer.parameters():  # biases are zero and norms are one at the start
        nn.init.normal_(p)
    x = torch.randn(1, 4, 6, dtype=torch.double)
    keys = torch.tensor([True, True, True, False])

    y = layer.attention_norm(x)[0]
    wq, wk, wv = layer.qkv.weight.chunk(3)
    bq, bk, bv = layer.qkv.bias.chunk(3)
    q, k, v = y @ wq.T + bq, y @ wk.T + bk, y @ wv.T + bv
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = q[:, h] @ k[:, h].T / math.sqrt(3)
        scores[:, ~keys] = -math.inf
        heads.append(scores.softmax(1) @ v[:, h])
    x1 = x[0] + layer.out(torch.cat(heads, 1))
    expected = x1 + layer.ff2(layer.ff1(layer.ff_norm(x1)).clamp(min=0))
    torch.testing.assert_close(layer(x, keys.view(1, 1, 1, 4))[0], expected)


def test_layer_weights_are_xavier_uniform_each_matrix_by_itself():
    weight = TransformerLayer(64, 4, 128, 0.1).qkv.weight
    bound = math.sqrt(6 / (64 + 64))
    for third in weight.chunk(3):
        assert 0.95 * bound < third.abs().max().item() <= bound


@pytest.mark.parametrize("masked", [False, True])
def test_attention_makes_no_matrix_of_frames_by_frames(masked):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.numel = max([self.numel, *(t.untyped_storage().nbytes() // 4 for t in tensors)])
            return out

    layer = TransformerLayer(16, 2, 16, dropout=0.1)
    x = torch.randn(1, 1024, 16, requires_grad=True)
    keys = (torch.arange(1024) < 1000).view(1, 1, 1, -1) if masked else None
    with Largest() as largest:
        layer(x, keys).sum().backward()
    assert largest.numel == 3 * 1024 * 16  # q, k and v


# The whole model


@pytest.mark.parametrize("training", [True, False])
def test_padded_frames_change_nothing(training):
    model = small_model(fc_dropout=0.0, dropout=0.0).train(training)
    frames, valid = clip(2, 6), first_rows_valid(2, 6, [6, 4])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    z = model(frames, valid)
    after = {k: v.clone() for k, v in model.state_dict().items()}
    frames[1, 4:] = 255 - frames[1, 4:]
    model.load_state_dict(state)
    again = model(frames, valid)
    assert torch.equal(z, again)
    assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items())
    assert torch.count_nonzero(z[1, 4:]) == 0
    frames[1, 3] = 255 - frames[1, 3]
    assert not torch.equal(model(frames, valid)[1, 0], z[1, 0])  # a real frame does matter


def test_a_video_is_the_same_alone_and_padded_in_a_batch():
    model = small_model().eval()
    frames = clip(3, 6)
    batch = model.encode(frames, first_rows_valid(3, 6, [6, 4, 0]))
    torch.testing.assert_close(batch[0], model.encode(frames[:1])[0])
    torch.testing.assert_close(batch[1, :4], model.encode(frames[1:2, :4])[0])
    assert torch.count_nonzero(batch[2]) == 0


def test_an_empty_sequence_gives_no_nan():
    model = small_model().train()
    valid = first_rows_valid(2, 6, [6, 0])
    z = model(clip(2, 6), valid)
    z.square().sum().backward()
    assert torch.isfinite(z).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_pixels_are_normalised_as_imagenet():
    model = small_model().eval()
    frames = clip(1, 2)
    seen = []
    model.backbone.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    from_bytes = model.encode(frames)
    from_floats = model.encode(frames.float() / 255)
    value = frames[0, 1, 2, 3, 4].item() / 255  # blue
    assert seen[0][1, 2, 3, 4].item() == pytest.approx((value - 0.406) / 0.225, abs=1e-5)
    torch.testing.assert_close(from_bytes, from_floats, atol=1e-5, rtol=1e-5)


def test_backbone_in_chunks_gives_frames_in_order():
    whole, chunked = small_model(chunk_frames=0).eval(), small_model(chunk_frames=4).eval()
    frames = clip(2, 7)
    calls = []
    chunked.backbone.layers.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    torch.testing.assert_close(chunked.encode(frames), whole.encode(frames))
    assert len(calls) == 4
    assert max(calls) == 4


def test_positions_can_be_switched_off():
    model = small_model().eval()
    frames = clip(1, 5)
    backwards = frames.flip(1)
    assert not torch.allclose(model.encode(frames).flip(1), model.encode(backwards), atol=1e-4)
    model.use_positions = False
    torch.testing.assert_close(model.encode(frames).flip(1), model.encode(backwards))


def test_forward_is_the_projection_of_the_embedding():
    model = small_model().eval()
    frames, valid = clip(2, 6), first_rows_valid(2, 6, [6, 3])
    h = model.encode(frames, valid)
    linear1, norm, _, linear2 = model.projection
    expected = linear2(norm(linear1(h[1, :3])).relu())
    torch.testing.assert_close(model(frames, valid)[1, :3], expected)


def test_wrong_input_is_named():
    model = small_model()
    with pytest.raises(ValueError, match=r"\(N, T, 3, H, W\), got \(1, 2, 16, 16, 3\)"):
        model.encode(torch.zeros(1, 2, 16, 16, 3))
    with pytest.raises(TypeError, match="int64"):
        model.encode(torch.zeros(1, 2, 3, 16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="valid must be bool"):
        model.encode(clip(1, 2), torch.ones(1, 2))
