"""The encoder of TCC and LAV, and its backbones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from narrow import narrow_resnet
from torch import nn

from training.models import ContextEncoder, SmallCNN, build_model, load_backbone_weights
from training.recipe.load import load_config


def small(**options) -> ContextEncoder:
    torch.manual_seed(0)
    sizes = {"num_context": 2, "context_stride": 3, "conv_size": 6, "fc_size": 7}
    sizes |= {"embedding_size": 5, "projection_hidden": 4, "projection_size": 4}
    return ContextEncoder(SmallCNN(32), **sizes | options)


def settled(model: ContextEncoder) -> ContextEncoder:
    """In eval mode, with random batch-norm statistics."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model.encode(torch.randint(256, (2, 6, 3, 32, 32), dtype=torch.uint8))
    return model.eval()


def video(frames=11, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (1, frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_layers_are_those_of_the_papers():
    model = build_model(load_config("recipes/lav.yaml"))
    shapes = [tuple(m.weight.shape) for m in model.convolutions if isinstance(m, nn.Conv3d)]
    assert shapes == [(512, 1024, 3, 3, 3), (512, 512, 3, 3, 3)]
    assert [m.out_features for m in model.embedding if isinstance(m, nn.Linear)] == [512, 512, 128]
    assert len(model.backbone.layer3) == 3
    assert not hasattr(model.backbone, "layer4")
    with torch.no_grad():
        maps = model.backbone.maps(torch.zeros(1, 3, 224, 224))
        assert maps.shape == (1, 1024, 14, 14)
        clip = torch.zeros(1, 1, 2, 3, 64, 64, dtype=torch.uint8)
        assert model.eval().encode(clip).shape == (1, 1, 128)


def test_an_embedding_from_its_definition():
    model = settled(small(fc_dropout=0.0))
    clip = video(4)[0].view(1, 2, 2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = torch.stack([model.backbone.layers((clip[0, i] / 255 - mean) / std) for i in range(2)])
    x = x.transpose(1, 2)  # frame, channel, context, height, width
    conv1, bn1, _, conv2, bn2, _ = model.convolutions
    for conv, bn in ((conv1, bn1), (conv2, bn2)):
        x = F.conv3d(x, conv.weight, conv.bias, padding=1)
        shape = (1, -1, 1, 1, 1)
        x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
        x = F.relu(x * bn.weight.view(shape) + bn.bias.view(shape))
    x = x.flatten(2).max(-1).values
    linears = [m for m in model.embedding if isinstance(m, nn.Linear)]
    for linear in linears[:-1]:
        x = F.relu(linear(x))
    torch.testing.assert_close(model.encode(clip)[0], linears[-1](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 1, 4, 100])
def test_a_whole_video_is_its_frames_with_their_context(chunk):
    model = settled(small(chunk_frames=chunk))
    frames = video()
    index = torch.arange(11)
    clips = torch.stack([frames[:, (index - 3).clamp(min=0)], frames[:, index]], 2)
    torch.testing.assert_close(model.encode(frames), model.encode(clips), rtol=1e-4, atol=1e-5)
    # Alone and in a batch: frame 2 sees frames 0 (clamped) and 2.
    pair = frames[:, [0, 2]].view(1, 1, 2, 3, 32, 32)
    one = model.encode(frames)[0, 2]
    torch.testing.assert_close(one, model.encode(pair)[0, 0], rtol=1e-4, atol=1e-5)


def test_an_embedding_depends_on_its_context_alone():
    model = settled(small())
    frames = video()
    before = model.encode(frames)
    changed = frames.clone()
    changed[0, 4] = 255 - changed[0, 4]
    moved = (model.encode(changed) - before).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [4, 7]
    flipped = frames[:, [2, 5]].view(1, 1, 2, 3, 32, 32).flip(2)
    assert not torch.allclose(model.encode(flipped)[0, 0], before[0, 5])  # order matters


def test_padding_does_not_matter_in_training():
    clips = torch.randint(256, (2, 6, 2, 3, 32, 32), dtype=torch.uint8)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 3:] = False
    model = small(fc_dropout=0.0).train()
    other = copy.deepcopy(model)
    changed = clips.clone()
    changed[1, 3:] = 0
    h = model.encode(clips, valid)
    assert torch.equal(h, other.encode(changed, valid))
    assert (h[1, 3:] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    assert model(clips, valid).shape == (2, 6, 4)


@pytest.mark.parametrize("shape", [(1, 4, 3, 3, 32, 32), (1, 4, 2, 1, 32, 32), (4, 3, 32, 32)])
def test_wrong_frames(shape):
    with pytest.raises(ValueError, match=r"\(N, T, 3, H, W\) or \(N, T, 2, 3, H, W\), got"):
        small().encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="valid must be bool"):
        small().encode(torch.zeros(1, 4, 3, 32, 32), torch.ones(1, 4))


def test_a_cut_resnet_is_the_whole_one_up_to_there(tmp_path, caplog):
    whole = narrow_resnet(50, "all").eval()
    torch.save(whole.state_dict(), tmp_path / "resnet50.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        x = whole.layer2(whole.layer1(whole.run_stage("stem", images)))
        expected = {"layer3": whole.layer3(x), "conv4c": whole.layer3[:3](x)}
    expected["layer4"] = whole.layer4(expected["layer3"]).detach()
    for end, maps in expected.items():
        cut = narrow_resnet(50, "all", end)
        report = load_backbone_weights(cut, tmp_path / "resnet50.pth")
        assert report.missing == []
        assert not caplog.records
        torch.testing.assert_close(cut.eval().maps(images), maps)
        assert cut.out_channels == maps.shape[1]
    with pytest.raises(ValueError, match=r"model\.backbone_to: resnet50 has stages"):
        narrow_resnet(50, "all", "layer5")


def test_only_batch_norms_are_trained():
    model = narrow_resnet(18, "batch_norm", "layer3").train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert trained == norms
    assert model.frozen
    assert all(module.training for module in model.modules())
