"""Classifiers of videos: TSM's shift against a loop, consensus, heads, and their weights."""

import pytest
import torch
from action_cases import RECIPE
from narrow import NARROW_CNN, NARROW_RESNET
from torch import nn

from training.evaluation.encoders import _weights
from training.models import ResNet, build_model, resnet, small_cnn
from training.models.tsm import ShiftedResNet, temporal_shift
from training.models.tsn import TSNModel
from training.recipe.load import load_config
from training.runs.model import Restored
from training.support.command import UserError


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)


def build(tmp_path, *options: str) -> TSNModel:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    cfg = load_config(tmp_path / "tiny.yaml", ["loss.action.classes=3", *options])
    torch.manual_seed(0)
    return build_model(cfg)


def shifted_by_loop(x: torch.Tensor, share: int) -> torch.Tensor:
    """Clips (n, L, C, h, w): channel by channel and frame by frame."""
    out = torch.zeros_like(x)
    n, length, channels = x.shape[:3]
    for clip in range(n):
        for t in range(length):
            for c in range(channels):
                source = t
                if c < channels // share:
                    source = t + 1
                elif c < 2 * (channels // share):
                    source = t - 1
                if 0 <= source < length:
                    out[clip, t, c] = x[clip, source, c]
    return out


@pytest.mark.parametrize(("frames", "channels", "share"), [(4, 16, 8), (1, 8, 4), (3, 10, 3)])
def test_shift_of_channels(frames, channels, share):
    x = torch.randn(2, frames, channels, 3, 2, requires_grad=True)
    got = temporal_shift(x.flatten(0, 1), frames, share).unflatten(0, (2, frames))
    assert torch.equal(got, shifted_by_loop(x, share))
    upstream = torch.randn_like(got)
    got.backward(upstream)
    # The gradient of a copy is the copy in the other direction.
    again = x.detach().clone().requires_grad_()
    shifted_by_loop(again, share).backward(upstream)
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize(("depth", "every"), [(18, 1), (50, 1), (101, 2)])
def test_shifted_resnet_is_a_resnet_with_shifts_before_the_first_convolutions(depth, every):
    torch.manual_seed(0)
    plain = ResNet(depth, "all", pool="mean").double().eval()
    shifted = ShiftedResNet(depth, share=8).double().eval()
    assert plain.state_dict().keys() == shifted.state_dict().keys()
    shifted.load_state_dict(plain.state_dict())
    clips = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        got = shifted.maps(clips)
        x = plain.run_stage("stem", clips.movedim(2, 1).flatten(0, 1))
        for number in range(1, 5):
            for index, block in enumerate(getattr(plain, f"layer{number}")):
                conv = block.conv1
                if index % every == 0:

                    class Shifted(nn.Module):
                        def __init__(self, inner):
                            super().__init__()
                            self.inner = inner

                        def forward(self, x):
                            clips = x.unflatten(0, (2, 4))
                            return self.inner(shifted_by_loop(clips, 8).flatten(0, 1))

                    block.conv1 = Shifted(conv)
                x = block(x)
                block.conv1 = conv
    torch.testing.assert_close(got.movedim(2, 1).flatten(0, 1), x)
    assert shifted.pool(got).shape == (2, shifted.out_features)


def test_shift_needs_room_for_both_shares():
    with pytest.raises(UserError, match=r"model\.shift: expected at least 2"):
        ShiftedResNet(18, share=1)


def test_scores_of_a_video_are_the_means_of_its_clips(tmp_path):
    model = build(tmp_path).eval()
    frames = torch.randint(0, 256, (2, 3, 2, 3, 16, 16), dtype=torch.uint8)
    linear = model.heads["action"][-1]
    with torch.no_grad():
        scores, features = model.classify(frames)
        for video in range(2):
            wanted = torch.zeros(3)
            for clip in range(3):
                vectors = [model.encode(frames[video : video + 1, clip])[0, t] for t in range(2)]
                vector = (vectors[0] + vectors[1]) / 2
                torch.testing.assert_close(features[video, clip], vector)
                wanted += (linear.weight @ vector + linear.bias) / 3
            torch.testing.assert_close(scores[video], wanted)
        torch.testing.assert_close(model.clip_scores(frames).mean(1), scores)
    assert list(model.heads) == ["action"]
    assert model.classes == 3


def test_tsm_sees_the_frames_of_all_segments_as_one_clip(tmp_path):
    model = build(tmp_path, "model.backbone=resnet18", "model.shift=8", "model.pool=mean").eval()
    segments = torch.randint(0, 256, (2, 3, 1, 3, 32, 32), dtype=torch.uint8)
    clips = model.clips_of(segments)
    assert clips.shape == (2, 1, 3, 3, 32, 32)
    assert torch.equal(clips[1, 0, 2], segments[1, 2, 0])
    with torch.no_grad():
        got = model.classify(clips)[0]
        other = model.classify(model.clips_of(segments.flip(1)))[0]
    assert not torch.allclose(got, other, atol=1e-5)  # the order of the frames matters
    plain = build(tmp_path, "model.backbone=resnet18", "model.pool=mean").eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        forward, backward = (plain.classify(one)[0] for one in (segments, segments.flip(1)))
    torch.testing.assert_close(forward, backward)  # TSN does not see it


def test_stored_features_of_tsm_depend_on_the_number_of_segments(tmp_path):
    """The clip around a frame has as many frames as a video has segments."""
    found = []
    for segments in (2, 3):
        options = ["model.backbone=resnet18", "model.shift=8", f"data.segments={segments}"]
        model = build(tmp_path, *options)
        cfg = load_config(tmp_path / "tiny.yaml", ["loss.action.classes=3", *options])
        found.append(_weights(Restored(model, cfg)).about)
    assert found[0].pop("clip") == [2, 1]
    assert found[1].pop("clip") == [3, 1]
    assert found[0] == found[1]


@pytest.mark.parametrize("part", ["all", "layer4", "none"])
def test_what_is_trained(tmp_path, part):
    options = ["model.backbone=resnet18", f"model.train_from={part}", "model.random_frozen=true"]
    model = build(tmp_path, *options).train()
    frames = torch.randint(0, 256, (2, 3, 1, 3, 32, 32), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    model.classify(frames)[0].square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    stages = {name.split(".")[1] for name in trained if name.startswith("backbone")}
    every = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert stages == {"all": every, "layer4": {"layer4"}, "none": set()}[part]
    assert {"heads.action.1.weight", "heads.action.1.bias"} <= trained
    moved = {n.split(".")[0] for n, v in model.backbone.named_buffers() if not v.equal(before[n])}
    assert moved == {"all": every - {"conv1"}, "layer4": {"layer4"}, "none": set()}[part]


def test_the_number_of_classes_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"loss\.action\.classes is null.*counts them"):
        build(tmp_path, "loss.action.classes=null")
