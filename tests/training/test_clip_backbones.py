"""Networks of clips: torchvision's names and values, stages, chunks, whole videos, errors."""

import copy

import pytest
import torch
from narrow import narrow_resnet3d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.models import build_model, load_backbone_weights
from training.models.resnet3d import NETWORKS, ResNet3d
from training.models.s3d import S3D
from training.models.small_cnn3d import SmallCNN3d
from training.models.vclr import VCLREncoder
from training.recipe.load import ConfigError, load_config
from training.support.command import UserError


def numbers_of(shape: torch.Size, place: int) -> Tensor:
    """Fixed numbers in [0, 1) without visible order, float64."""
    count = torch.arange(place, place + shape.numel(), dtype=torch.float64)
    return count.square_().mul_(0.618033988749895).frac_().view(shape)


def fill(network: nn.Module) -> None:
    """Fixed weights and statistics by their order in the state dict."""
    for place, (name, tensor) in enumerate(network.state_dict().items()):
        if tensor.dim() == 0:  # a batch counter
            tensor.zero_()
            continue
        numbers = numbers_of(tensor.shape, place)
        if tensor.dim() > 1:
            numbers = numbers.sub_(0.5).mul_((24 / tensor[0].numel()) ** 0.5)
        elif name.endswith((".weight", ".running_var")):
            numbers = numbers + 0.5
        else:
            numbers = numbers - 0.5
        tensor.copy_(numbers)


# Root mean square of the map of `fill`'s network, and the means of its four quarters of channels:
# computed with torchvision 0.28.0 and torch 2.13.0 in fp32.
VALUES = {
    "r3d_18": (7.359603, 4.415282, 4.258363, 4.353904, 3.864877),
    "r3d_50": (1364.997, 857.2947, 891.3178, 790.3815, 795.8047),
    "r2plus1d_18": (15.02522, 8.519786, 8.544467, 9.143536, 8.804397),
    "s3d": (3.199181, 2.374472, 1.539542, 0.4900389, 1.470249),
}


def network_of(name: str, **options: str) -> ResNet3d | S3D:
    return S3D(**options) if name == "s3d" else ResNet3d(name, **options)


@pytest.mark.parametrize("name", VALUES)
def test_networks_compute_what_torchvisions_do(name):
    with torch.device("meta"):  # without drawing weights
        network = network_of(name).eval()
    fill(network.to_empty(device="cpu"))
    clip = (2 * numbers_of(torch.Size((1, 3, 8, 32, 32)), 0) - 1).float()
    with torch.no_grad():
        maps = network.maps(clip)
    got = [maps.square().mean().sqrt(), *maps.mean((0, 2, 3, 4)).view(4, -1).mean(1)]
    torch.testing.assert_close(torch.stack(got), torch.tensor(VALUES[name]), rtol=1e-4, atol=1e-5)


# Names and stages


@pytest.mark.parametrize(
    ("name", "entries", "parameters"),
    [
        ("r3d_18", 120, 33_166_272),
        ("r3d_50", 318, 46_161_344),
        ("r2plus1d_18", 222, 31_300_125),
        ("s3d", 462, 7_910_048),
    ],
)
def test_networks_have_torchvisions_entries(name, entries, parameters):
    """Numbers from torchvision 0.28.0, without the classifier."""
    with torch.device("meta"):
        network = network_of(name)
    assert len(network.state_dict()) == entries
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_names_of_entries_are_torchvisions():
    with torch.device("meta"):
        names = {name: {*network_of(name).state_dict()} for name in VALUES}
    assert {"stem.0.weight", "layer2.0.conv1.0.weight", "layer2.0.conv1.1.running_mean"} <= names[
        "r3d_18"
    ]
    assert {"layer2.0.downsample.0.weight", "layer1.1.conv2.1.weight"} <= names["r3d_18"]
    assert {"layer1.0.conv3.1.bias", "layer1.0.downsample.1.weight"} <= names["r3d_50"]
    assert {"stem.3.weight", "layer4.1.conv2.0.3.weight", "layer1.0.conv1.0.1.weight"} <= names[
        "r2plus1d_18"
    ]
    assert {"features.0.0.0.weight", "features.3.1.1.bias", "features.15.branch3.1.0.weight"} <= (
        names["s3d"]
    )
    assert "features.8.branch1.1.1.0.weight" in names["s3d"]


@pytest.mark.parametrize(
    ("end", "stages", "stride", "channels", "shape"),
    [
        ("last", 5, 32, 1024, (1, 1, 1)),
        ("stride16", 4, 16, 832, (2, 2, 3)),
        ("mixed3", 3, 8, 480, (4, 4, 6)),
        ("conv2", 2, 4, 192, (4, 8, 12)),
        ("conv1", 1, 2, 64, (4, 16, 24)),
    ],
)
def test_stages_of_s3d(end, stages, stride, channels, shape):
    network = S3D("all", end, "grid").eval()
    assert (len(network.stages), network.stride, network.out_channels) == (stages, stride, channels)
    clip = torch.rand(1, 3, 8, 32, 48)
    with torch.no_grad():
        assert network.maps(clip).shape == (1, channels, *shape)
        assert network(clip).shape == (1, network.out_features) == (1, 16 * channels)
    whole = S3D().state_dict()
    left = [name for name in whole if name not in network.state_dict()]
    assert all(name.startswith(network.left_out) for name in left)
    assert not any(name.startswith(network.left_out) for name in network.state_dict() if left)


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_of_resnets(name):
    with torch.device("meta"):
        network = ResNet3d(name, "layer3", "stride8")
    assert network.stages == ("stem", "layer1", "layer2", "layer3")
    assert (network.stride, network.out_channels) == (8, 1024 if name == "r3d_50" else 256)
    trained = {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"layer3"}
    network.train()
    assert [network.layer2.training, network.layer3.training] == [False, True]


@pytest.mark.parametrize(
    ("network", "classifier"),
    [
        (lambda: S3D("all", "mixed3"), "classifier.1"),
        (lambda: narrow_resnet3d("r2plus1d_18", "all", "layer2"), "fc"),
    ],
    ids=["s3d", "r2plus1d_18"],
)
def test_files_of_whole_networks_load(tmp_path, network, classifier):
    """A file as torchvision's, of all stages and the classifier, into the first stages."""
    part = network()
    whole = S3D() if classifier == "classifier.1" else narrow_resnet3d("r2plus1d_18")
    file = {name: torch.full_like(value, 2) for name, value in whole.state_dict().items()}
    file |= {f"{classifier}.weight": torch.zeros(3, 4), f"{classifier}.bias": torch.zeros(3)}
    torch.save(file, tmp_path / "file.pth")
    report = load_backbone_weights(part, tmp_path / "file.pth")
    assert report.missing == []
    assert report.loaded == len(part.state_dict()) < len(whole.state_dict())
    assert all((value == 2).all() for value in part.state_dict().values())


@pytest.mark.parametrize(("pool", "features"), [("mean", 2), ("max", 2), ("grid", 32)])
def test_pools_of_clips(pool, features):
    network = narrow_resnet3d("r3d_18", "all", "last", pool)
    network.out_channels = 2
    maps = torch.arange(2 * 3 * 8 * 4, dtype=torch.float32).view(1, 2, 3, 8, 4)
    got = network.pool(maps)
    assert got.shape == (1, features) == (1, network.out_features)
    if pool == "grid":  # means over time and pairs of rows
        expected = maps[0].mean(1).view(2, 4, 2, 4).mean(2).flatten()
    else:
        expected = maps[0].flatten(1).mean(1) if pool == "mean" else maps[0].flatten(1).amax(1)
    torch.testing.assert_close(got[0], expected)


# Clips in the encoder


def encoder_of(backbone: nn.Module, **options) -> VCLREncoder:
    options = {"chunk_frames": 0, "checkpointing": False} | options
    return VCLREncoder(backbone, ["inter"], hidden=6, size=4, **options)


def random_clips(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def gradients(model: VCLREncoder, call, *, bf16: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        call(model).float().sin().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def frozen_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@pytest.mark.parametrize(
    "backbone",
    [lambda: SmallCNN3d(16), lambda: narrow_resnet3d("r3d_18", "layer3")],
    ids=["all", "layer3"],
)
def test_chunks_have_the_gradients_of_one_call(backbone):
    """In float64, with the batch norms' statistics frozen; chunks are whole clips."""
    model = encoder_of(backbone()).double().train()
    frozen_statistics(model)
    clips = random_clips(2, 3, 4, 3, 16, 16)
    whole = gradients(model, lambda m: m.clip_features(clips))
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    for chunk_frames, chunks in ((8, 3), (9, 3), (1, 6)):
        model.chunk_frames = chunk_frames
        assert model.chunk_count(6, 4) == chunks
        for model.checkpointing in (False, True):
            for name, value in gradients(model, lambda m: m.clip_features(clips)).items():
                torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_recomputed_chunks_are_the_same_to_the_bit(bf16):
    """Gradients and running statistics, with batch statistics of each chunk."""
    first = encoder_of(SmallCNN3d(16), chunk_frames=8).train()
    second = copy.deepcopy(first)
    second.checkpointing = True
    clips = random_clips(2, 3, 4, 3, 16, 16)
    index = torch.tensor([[0, 4], [5, 2]])
    expected = gradients(first, lambda m: m.clip_features(clips, index), bf16=bf16)
    got = gradients(second, lambda m: m.clip_features(clips, index), bf16=bf16)
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    for (name, value), other in zip(first.named_buffers(), second.buffers(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("chunk_frames", [0, 3, 8])
def test_chosen_clips_are_those_of_the_index(chunk_frames):
    clips = random_clips(2, 3, 4, 3, 16, 16)
    index = torch.tensor([[5, 0, 0], [3, 1, 2]])
    for backbone in (SmallCNN3d(16), narrow_resnet3d("r2plus1d_18")):
        model = encoder_of(backbone, chunk_frames=chunk_frames).eval()
        with torch.no_grad():
            expected = model.clip_features(clips).flatten(0, 1)[index]
            torch.testing.assert_close(
                model.clip_features(clips, index), expected, rtol=1e-4, atol=1e-5
            )


def test_a_backbone_of_images_averages_the_frames_of_a_clip():
    model = build_model(load_config("recipes/vclr.yaml", ["model.backbone=small_cnn", *SMALL]))
    model.eval()
    clips = random_clips(2, 3, 4, 3, 16, 16)
    with torch.no_grad():
        frames = model.features(clips.flatten(1, 2)).view(2, 3, 4, -1)
        torch.testing.assert_close(model.clip_features(clips), frames.mean(2))
        chosen = model.clip_features(clips, torch.tensor([[4, 1]]))
    torch.testing.assert_close(chosen[0], frames.mean(2).flatten(0, 1)[[4, 1]])


SMALL = ["loss.vclr.queue_size=4", "augmentation.size=16", "model.projection_hidden=8"]


@pytest.mark.parametrize(("length", "stride"), [(5, 1), (4, 2), (32, 3)])
def test_frames_of_whole_videos_have_the_clip_around_them(length, stride):
    options = ["model.backbone=small_cnn3d", f"data.tuple_frames={length}"]
    options += [f"data.tuple_stride={stride}", "train.chunk_frames=40", *SMALL]
    model = build_model(load_config("recipes/vclr.yaml", options)).eval()
    videos = random_clips(2, 9, 3, 16, 16)
    with torch.no_grad():
        got = model.encode(videos)
        assert got.shape == (2, 9, model.backbone.out_features)
        for frame in range(9):
            numbers = [frame + stride * (k - length // 2) for k in range(length)]
            clip = videos[:, [min(max(number, 0), 8) for number in numbers]]
            expected = model.clip_features(clip[:, None])[:, 0]
            torch.testing.assert_close(got[:, frame], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.compile
def test_both_parts_compile():
    """As one graph each, for clips too; the eager backend runs it."""
    model = build_model(
        load_config(
            "recipes/vclr.yaml",
            ["model.backbone=small_cnn3d", "data.tuple_frames=4", *SMALL],
        )
    ).eval()
    clips = random_clips(1, 2, 4, 3, 16, 16)
    with torch.no_grad():
        expected = model.clip_features(clips)
        with pytest.MonkeyPatch.context() as patch:
            compiled = torch.compile
            patch.setattr(torch, "compile", lambda f: compiled(f, backend="eager", fullgraph=True))
            model.compile_backbone()
        torch.testing.assert_close(model.clip_features(clips), expected)
        torch.testing.assert_close(model.momentum.module.clip_features(clips), expected)


# Requests that do not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.backbone=s3d", "data.tuple_frames=4"], "s3d .* at least 5 frames, got 4"),
        (["model.backbone=s3d", "data.tuple_frames=8"], "at least 17 pixels per side, got 16"),
        (["model.backbone=r3d_18"], "data.tuple_frames: r3d_18 .* at least 2 frames, got 1"),
    ],
)
def test_clips_that_a_network_does_not_accept(options, message):
    with pytest.raises((UserError, ConfigError), match=message):
        build_model(load_config("recipes/vclr.yaml", [*options, *SMALL]))


def test_the_smallest_clips_of_s3d():
    network = S3D().eval()
    with torch.no_grad():
        assert network.maps(torch.zeros(1, 3, 5, 17, 17)).shape == (1, 1024, 1, 1, 1)
        for shape in ((4, 17, 17), (5, 16, 17)):
            with pytest.raises(RuntimeError, match="too small"):
                network.maps(torch.zeros(1, 3, *shape))
    with pytest.raises(UserError, match="small_cnn3d is one stage"):
        build_model(
            load_config(
                "recipes/vclr.yaml",
                ["model.backbone=small_cnn3d", "data.tuple_frames=4", "model.train_from=last"],
            )
        )


def test_functions_return_networks_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_clips.py").write_text(
        "import torch\n\n\ndef network():\n    return torch.nn.Conv3d(3, 4, 3)\n"
    )
    options = ["model.backbone=of_clips:network", *SMALL]
    with pytest.raises(UserError, match="has 3-D convolutions and fails with an image"):
        build_model(load_config("recipes/vclr.yaml", options))


@pytest.mark.parametrize("encoder", ["fve", "conv3d"])
def test_encoders_of_frames_need_networks_of_images(encoder):
    recipe = "recipes/carl.yaml" if encoder == "fve" else "recipes/tcc.yaml"
    with pytest.raises(ConfigError, match="r3d_18 is a network of clips and needs"):
        load_config(recipe, ["model.backbone=r3d_18"])
