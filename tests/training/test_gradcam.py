"""Grad-CAM: its values, where it lights up, the picture, the command and the report."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import RECIPE
from torch import nn

from training import convert, gradcam, report, train
from training.data.index import build_index
from training.evaluation.gradcam import CLASS, SIMILARITY, Heat, grad_cam, video_heat
from training.evaluation.gradcam_run import (
    AFTER,
    BEFORE,
    BEHIND,
    NOT_TRAINED,
    PLACES,
    SAME,
    Networks,
    networks_of,
    remarks_of,
    spread_over_actions,
)
from training.evaluation.gradcam_sheet import Block, Line, _range, gradcam_sheet, over
from training.models.backbone import Backbone, Stages
from training.models.resnet import ResNet
from training.models.small_cnn import SmallCNN
from training.models.tsm import ShiftedResNet
from training.models.tsn import TSNModel
from training.runs.folder import contents
from training.support.command import UserError


class Tiny(Backbone):
    """One convolution of images, or of clips."""

    out_channels = 5

    def __init__(self, clips=False, pool="mean", stride=4, train_from="all"):
        super().__init__(Stages("tiny", {"layers": stride}), train_from, pool=pool)
        self.clips = clips
        kind, size = (nn.Conv3d, (2, stride, stride)) if clips else (nn.Conv2d, stride)
        self.layers = nn.Sequential(kind(3, 5, size, stride=size), nn.Tanh())
        self.choose_trained()

    def modules_of(self, name):
        return [self.layers]

    def run_stage(self, name, x):
        return self.layers(x)


class Corner(Tiny):
    """Sees the lower right corner of an image only."""

    def run_stage(self, name, x):
        maps = self.layers(x).abs()
        seen = torch.zeros_like(maps)
        seen[..., -1, -1] = 1
        return maps * seen


class Model(nn.Module):
    def __init__(self, backbone, classes=0, segments=None):
        super().__init__()
        self.backbone, self.segments = backbone, segments
        self.heads = nn.ModuleDict()
        if classes:
            linear = nn.Linear(backbone.out_features, classes)
            self.heads["action"] = nn.Sequential(nn.Dropout(), linear)
        self.eval()


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 4, 3, 2, 5)])
def test_maps_equal_finite_differences(shape):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator, dtype=torch.float64)
    head = torch.randn(shape[1], generator=generator, dtype=torch.float64)

    def score(a):  # not linear, so that the weights depend on the map
        return torch.tanh(a.flatten(2).square().mean(2) @ head)

    expected = torch.zeros(shape[0], *shape[2:], dtype=torch.float64)
    step, places = 1e-5, maps[0, 0].numel()
    for n in range(shape[0]):
        for c in range(shape[1]):
            slope = 0.0
            for place in range(places):
                for sign in (1, -1):
                    moved = maps.clone()
                    moved[n, c].view(-1)[place] += sign * step
                    slope += sign * float(score(moved)[n]) / (2 * step)
            expected[n] += slope / places * maps[n, c]
    expected = expected.clamp(min=0)
    assert 0.2 < (expected > 0).double().mean() < 0.8  # the ReLU does something
    torch.testing.assert_close(grad_cam(maps, score), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pool", ["mean", "max", "grid"])
@pytest.mark.parametrize("clips", [False, True])
def test_heat_of_a_video_by_hand(clips, pool):
    """f and its derivative for each pooling, without autograd, in the sizes of the map."""
    torch.manual_seed(1)
    backbone = Tiny(clips, pool, train_from="none").double()
    frames = images(3, 4, 3, 16, 16) if clips else images(3, 3, 16, 16)
    model = Model(backbone)
    x = frames.double() / 255
    mean, std = (
        torch.tensor(v).double().view(3, 1, 1) for v in (backbone.pixel_mean, backbone.pixel_std)
    )
    x = (x - mean) / std
    maps = backbone.layers(x.transpose(1, 2) if clips else x).detach()  # 4 x 4 positions
    per_map = maps[0, 0].numel()
    if pool == "grid":
        f = (maps.mean(2) if clips else maps).flatten(1)
        v = f.mean(0)
        w = (v / v.norm()).view(5, -1).mean(1) / (per_map / 16)
    else:
        f = maps.flatten(2).mean(2) if pool == "mean" else maps.flatten(2).amax(2)
        v = f.mean(0)
        w = v / v.norm() / per_map
    expected = torch.einsum("c,nc...->n...", w, maps).clamp(min=0)
    size = (4, 16, 16) if clips else (16, 16)
    mode = "trilinear" if clips else "bilinear"
    expected = nn.functional.interpolate(expected[:, None], size, mode=mode)[:, 0]
    heat = video_heat(model, frames)
    np.testing.assert_allclose(
        heat.maps, (expected[:, 2] if clips else expected), rtol=1e-4, atol=1e-7
    )
    assert (heat.score, heat.predicted) == (SIMILARITY, "")
    for batch in (1, 2):
        np.testing.assert_allclose(
            video_heat(model, frames, batch=batch).maps, heat.maps, rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("clips", [False, True])
def test_a_network_that_sees_one_corner_lights_it(clips, classes):
    torch.manual_seed(0)
    frames = images(4, 2, 3, 16, 16) if clips else images(4, 3, 16, 16)
    model = Model(Corner(clips), classes)
    if classes:  # each feature counts for each class
        model.heads["action"][1].weight.data.abs_()
    heat = video_heat(model, frames).maps
    assert heat[:, 14:, 14:].min() > 0
    assert heat[:, :10, :].max() == heat[:, :, :10].max() == 0


def test_a_classifier_shows_the_class_that_it_predicts():
    torch.manual_seed(0)
    model, frames = Model(Tiny(), classes=4), images(5, 3, 16, 16)
    linear = model.heads["action"][1]
    x = (frames.float() / 255 - torch.tensor(model.backbone.pixel_mean).view(3, 1, 1)) / (
        torch.tensor(model.backbone.pixel_std).view(3, 1, 1)
    )
    maps = model.backbone.maps(x).detach()
    number = int(linear(maps.mean((2, 3))).mean(0).argmax())
    heat = video_heat(model, frames, ["run", "jump", "sit", "wave"])
    assert (heat.predicted, heat.score) == (["run", "jump", "sit", "wave"][number], CLASS)
    weights = linear.weight[number].detach() / 16
    expected = torch.einsum("c,nchw->nhw", weights, maps).clamp(min=0)
    expected = nn.functional.interpolate(expected[:, None], (16, 16), mode="bilinear")[:, 0]
    np.testing.assert_allclose(heat.maps, expected, rtol=1e-4, atol=1e-7)
    assert video_heat(model, frames).predicted == f"class {number}"


def test_a_clip_spread_over_the_video_has_a_map_for_each_frame():
    torch.manual_seed(0)
    model, frames = Model(Tiny(clips=True), classes=3, segments=4), images(6, 3, 16, 16)
    heat = video_heat(model, frames).maps
    assert heat.shape == (6, 16, 16)
    model.segments = None
    one = video_heat(model, frames[None])  # the same clip; its middle is frame 3
    np.testing.assert_array_equal(one.maps[0], heat[3])


def test_tsm_sees_the_frames_of_the_line_as_one_clip():
    torch.manual_seed(0)
    options = {"dropout": 0.5, "chunk_frames": 0, "checkpointing": False}
    backbone = ShiftedResNet(18, pool="mean")
    model = TSNModel(backbone, classes=3, segments=4, **options).eval()
    frames = images(4, 3, 64, 64)
    other = frames.clone()
    other[3] = 255 - other[3]
    first, second = (video_heat(model, one).maps[0] for one in (frames, other))
    assert first.shape == (64, 64)
    assert not np.allclose(first, second)  # the map of a frame depends on the other frames


@pytest.mark.parametrize("backbone", [SmallCNN(32), ResNet(18, "all", "layer2", "max")])
def test_backbones_of_this_project(backbone):
    heat = video_heat(Model(backbone), images(2, 3, 32, 32)).maps
    assert heat.shape == (2, 32, 32)
    assert heat.min() >= 0 < heat.max()


def test_a_backbone_without_a_map_is_an_error():
    with pytest.raises(UserError, match=r"tiny returns \(2, 5, 1, 1\).*augmentation.size"):
        video_heat(Model(Tiny(stride=16)), images(2, 3, 16, 16))
    with pytest.raises(UserError, match="Linear has none"):
        video_heat(nn.Linear(1, 1), images(2, 3, 16, 16))


def test_colours_cover_the_range_of_the_line():
    heat = np.full((1, 4, 4), 5.0)
    heat[0, 0, 0], heat[0, 3, 3] = 4.0, 9.0
    pink, green = (
        over(np.full((1, 4, 4, 3), colour, np.uint8), heat).astype(int)
        for colour in ((200, 100, 120), (132, 132, 132))
    )
    assert np.abs(pink - green).max() <= 1  # colours that are equally bright
    assert pink[0, 0, 0, 2] > pink[0, 0, 0, 0]  # smallest: blue
    assert pink[0, 3, 3, 0] > pink[0, 3, 3, 2] + 30  # largest: red
    black, white = over(
        np.array([0, 255], np.uint8).repeat(12).reshape(2, 2, 2, 3), heat[:, :2, :2]
    )
    assert (white.astype(int) - black > 60).all()  # the frame is seen
    plain = over(np.full((1, 4, 4, 3), 100, np.uint8), np.zeros((1, 4, 4)))
    assert len(np.unique(plain)) == 1


def test_the_range_beside_a_line():
    assert _range(np.array([[[0.5, 2.0]]])) == "0.25 to 1"
    assert _range(np.zeros((1, 2, 2))) == "0 everywhere"


def test_the_sheet_has_a_line_for_each_network(tmp_path):
    frames = np.zeros((5, 8, 8, 3), np.uint8)
    record = SimpleNamespace(id="a.mp4", action="all")
    heat = Heat(np.ones((5, 8, 8), np.float32), SIMILARITY)

    def size(lines):
        block = Block(record, np.arange(5), 2.0, [Line("frames", frames), *lines])
        gradcam_sheet([block], tmp_path / "one.png")
        return Image.open(tmp_path / "one.png").size

    none, one, two = (size([Line("network", frames, heat)] * n) for n in range(3))
    assert two[1] - one[1] == 64 + 4  # a picture of 128 x 64 pixels, and a gap
    assert none[0] == one[0] == two[0]
    column = np.asarray(Image.open(tmp_path / "one.png").convert("L"))[:, -80]  # of the last tile
    (dark,) = np.nonzero(column[:-60] < 70)  # without the text below
    starts = dark[np.diff(dark, prepend=-9) > 1]
    assert np.diff(starts).tolist() == [68, 68]


def test_the_legend_of_a_single_column_is_not_cut_off(tmp_path):
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    block = Block(SimpleNamespace(id="a.mp4", action="all"), np.arange(1), 1.0, [])
    gradcam_sheet([block], tmp_path / "one.png")
    block.lines.append(Line("network", frames, Heat(np.ones((1, 8, 8), np.float32), CLASS)))
    gradcam_sheet([block], tmp_path / "one.png")
    sheet = np.asarray(Image.open(tmp_path / "one.png").convert("L"))
    assert (sheet[:, -10:] == 255).all()  # the margin


def test_videos_are_spread_over_actions():
    records = [SimpleNamespace(id=str(n), action="ab"[n % 2]) for n in range(8)]
    assert [record.id for record in spread_over_actions(records, 4)] == ["0", "4", "3", "7"]
    assert len(spread_over_actions(records, 20)) == 8


@pytest.fixture
def run(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    shutil.copytree(videos, "videos")
    entries = {f"{name}.mp4": {"split": "train" if name == "a" else "test"} for name in "abc"}
    Path("videos/labels.json").write_text(json.dumps({"videos": entries}))
    build_index("videos")
    small = ["augmentation.size=32", "data.batch_size=1", "train.steps=1"]
    assert train.main(["tiny.yaml", "train.run_dir=run", *small]) == 0
    return Path("run")


def test_command_and_report(run, capsys, monkeypatch):
    assert gradcam.main(["run", "--frames", "3"]) == 0
    whole = Image.open("run/gradcam.png").size
    assert Path("run/gradcam.png") in contents(Path("run"))  # what --overwrite removes
    shutil.copytree("run", "other")
    assert gradcam.main(["run", "--beside", "other", "--frames", "3", "--out", "both.png"]) == 0
    assert Image.open("both.png").width == whole[0]
    path = Path("videos/b.mp4")
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    two_runs = ["run", "--beside", "other", "--frames", "3", "--out", "one.png"]
    assert gradcam.main(two_runs) == 3
    out, err = capsys.readouterr()
    assert "1 video could not be read" in out
    assert err.count("left out b.mp4") == 1
    assert Image.open("one.png").height < whole[1]
    assert report.main(["run"]) == 3
    assert capsys.readouterr().err.count("left out b.mp4") == 1
    page = Path("run/report.html").read_text()
    assert "Where the network looks" in page
    assert "heat maps over frames" in page
    with pytest.raises(SystemExit):
        gradcam.main(["run", "--videos", "0"])
    assert gradcam.main(["nothing"]) == 2
    assert "nothing is not a run" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gradcam.main(["run"]) == 2
    assert "runs as one process" in capsys.readouterr().err


def test_a_frozen_backbone_has_one_line(run):
    (group,) = networks_of("run")
    assert [*group.models] == [BEFORE, f"{AFTER}, step 1"]
    places = PLACES.format("The backbone's features")
    assert remarks_of([group]) == [places, BEHIND]
    frozen = ["model.train_from=none", "model.random_frozen=true", "train.run_dir=frozen"]
    small = ["augmentation.size=32", "data.batch_size=1", "train.steps=1"]
    assert train.main(["tiny.yaml", *frozen, *small]) == 0
    (group,) = networks_of("frozen")
    assert [*group.models] == ["frozen backbone"]
    assert remarks_of([group]) == [SAME, places, BEHIND]


def test_a_converted_run_has_not_been_trained(run, capsys):
    start = ["tiny.yaml", "augmentation.size=32", "model.weights=run", "model.weights_parts=all"]
    assert convert.main([*start, "data.folder=videos", "--out", "converted"]) == 0
    (group,) = networks_of("converted")
    assert [*group.models] == ["run"]
    assert remarks_of([group])[0] == NOT_TRAINED
    assert gradcam.main(["converted", "--frames", "1", "--videos", "1"]) == 0


def test_the_network_that_keeps_positions_is_named():
    cfg = SimpleNamespace(model=SimpleNamespace(encoder="vclr"))
    kept, pooled = (
        Networks({name: Model(backbone)}, cfg)
        for name, backbone in (("a", Tiny(pool="grid")), ("b", Tiny()))
    )
    assert remarks_of([kept, pooled]) == [PLACES.format("The features of a")]
    assert remarks_of([kept]) == [PLACES.format("The backbone's features")]
    assert remarks_of([pooled]) == []
