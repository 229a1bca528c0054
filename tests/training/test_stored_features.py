"""Features of a backbone: pixels as it wants them, centred, in chunks, and given in its place."""

import pytest
import torch
from narrow import narrow_resnet
from runs import SquareEngine, SquareItems, read_log, same, weights

import training.train
from fastseq.video import ClipLoader
from training.models import CarlModel, ContextEncoder, SmallCNN, build_model
from training.recipe.load import load_config
from training.runs.model import initial_model
from training.train import main

FRAMES = torch.randint(
    256, (2, 6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
VALID = torch.arange(6) < torch.tensor([[6], [4]])


def carl(backbone=None, **options):
    torch.manual_seed(0)
    sizes = {"fc_size": 16, "layers": 1, "hidden_size": 16, "heads": 2, "ff_size": 32}
    return CarlModel(backbone or SmallCNN(16, "none"), num_frames=6, **sizes | options)


def test_pixels_are_normalised_as_the_backbone_says():
    backbone = SmallCNN(16)
    backbone.pixel_mean, backbone.pixel_std = (127 / 255,) * 3, (128 / 255,) * 3
    expected = (FRAMES[0].float() - 127) / 128
    torch.testing.assert_close(carl(backbone)._normalise(FRAMES[0]), expected)


def test_features_are_what_the_backbone_makes_of_each_frame():
    model = carl(chunk_frames=4).eval()
    features = model.features(FRAMES)
    each = [model.backbone(model._normalise(frame[None]))[0] for clip in FRAMES for frame in clip]
    torch.testing.assert_close(features, torch.stack(each).view(2, 6, -1))
    assert not features.requires_grad
    assert carl(SmallCNN(16)).train().features(FRAMES).requires_grad
    with pytest.raises(ValueError, match=r"frames must be \(N, T, 3, H, W\)"):
        model.features(FRAMES[0])


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("valid", [None, VALID])
def test_stored_features_take_the_place_of_the_frames(centre, valid):
    model = carl(centre=centre).eval()
    features = model.features(FRAMES)
    for mode in (False, True):
        model.train(mode)
        torch.manual_seed(1)
        expected = model.encode(FRAMES, valid)
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "_per_frame", None)  # the backbone is not called
            torch.testing.assert_close(model.encode(features, valid, stored=True), expected)


@pytest.mark.parametrize(
    "given",
    [FRAMES, torch.zeros(2, 6, 31), torch.zeros(2, 6, 32, dtype=torch.int64), torch.zeros(6, 32)],
)
def test_what_are_no_stored_features(given):
    with pytest.raises(ValueError, match=r"stored features must be floating point \(N, T, 32\)"):
        carl().encode(given, stored=True)


@pytest.mark.parametrize("valid", [None, VALID])
def test_centred_features_are_less_the_mean_of_the_clip_s_real_frames(valid):
    model, plain = carl(centre=True).eval(), carl().eval()
    features = torch.rand(2, 6, 32)
    centred = torch.zeros_like(features)
    for n, clip in enumerate(features):
        real = [t for t in range(6) if valid is None or valid[n, t]]
        mean = sum(clip[t] for t in real) / len(real)
        for t in real:
            centred[n, t] = clip[t] - mean
    got = model.encode(features, valid, stored=True)
    torch.testing.assert_close(got, plain.encode(centred, valid, stored=True))
    if valid is not None:
        features[~valid] = 1e6
        assert torch.equal(model.encode(features, valid, stored=True), got)
    # What is the same in all frames of a clip is gone.
    shifted = features + torch.rand(2, 1, 32)
    torch.testing.assert_close(model.encode(shifted, valid, stored=True), got)


@pytest.mark.parametrize("valid", [None, torch.tensor([[True, False]])])
def test_one_frame_is_its_own_mean(valid):
    model = carl(centre=True)
    entering = []
    model.fc_block.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    frames = 1 if valid is None else 2
    model.eval().encode(torch.rand(1, frames, 32), valid, stored=True)
    assert torch.equal(entering[0], torch.zeros(1, 32))


def test_the_mean_is_taken_off_in_float32_under_autocast(monkeypatch):
    model = carl(centre=True).eval()
    features = 1000 + 100 * torch.rand(6, 32).bfloat16()
    monkeypatch.setattr(model, "_per_frame", lambda *_, **__: features)
    entering = []
    model.fc_block.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(FRAMES[:1])
    expected = features.float() - features.float().mean(0)
    torch.testing.assert_close(entering[0], expected)


@pytest.mark.parametrize(
    ("option", "encoder"),
    [("centre=true", "conv3d"), ("centre=true", "vclr"), ("backbone_share=0.5", "conv3d")],
)
def test_some_options_are_for_one_encoder(recipe, option, encoder, capsys):
    options = [f"model.{option}", f"model.encoder={encoder}"]
    if encoder == "vclr":
        options += ["loss.vclr.weight=1", "data.clips=tuples"]
    assert main([recipe, *options]) == 2
    assert capsys.readouterr().err == (
        f"error: model.{option.partition('=')[0]} works only with model.encoder=fve, "
        f"got model.encoder={encoder}\n"
    )


def test_centre_of_a_recipe_reaches_the_model(recipe):
    for centre in (False, True):
        cfg = load_config(recipe, [f"model.centre={centre}"])
        assert build_model(cfg).centre is centre


def test_the_chunk_suits_the_device_and_the_batch_norms():
    trained, frozen = carl(narrow_resnet(18, "layer4")), carl(narrow_resnet(18, "none"))
    for model in (trained, frozen):
        assert model.chunk_frames is None
        assert model.eval().chunk_size() == 8
        assert model.chunk_count(240) == 30
    assert trained.train().chunk_size() == 80
    assert frozen.train().chunk_size() == 8
    assert frozen.to("meta").chunk_size() == 80  # no CPU
    assert carl(chunk_frames=0).eval().chunk_size() == 0


def test_a_whole_video_with_context_is_the_same_in_any_chunks():
    frames = torch.randint(256, (1, 100, 3, 16, 16), dtype=torch.uint8)
    made = []
    for chunk in (0, None):
        torch.manual_seed(0)
        model = ContextEncoder(SmallCNN(16), conv_size=4, fc_size=4, chunk_frames=chunk).eval()
        calls = []
        model._embed = lambda maps, model=model, calls=calls: (
            calls.append(len(maps)) or ContextEncoder._embed(model, maps)
        )
        made.append(model.encode(frames))
        assert calls == ([100] if chunk == 0 else [80, 20])
    torch.testing.assert_close(*made)


class FeatureLoader(ClipLoader):
    """The features of the same squares."""

    def _batch(self, items, frames):
        batch = super()._batch(items, frames)
        pixels = batch["frames"].flatten(0, 1)
        return batch | {"frames": self.model.features(pixels).unflatten(0, (-1, 2))}


def stored(cfg, *_, **__):
    engine = SquareEngine(16, workers=0)
    loader = FeatureLoader(SquareItems(5, True), 2, engine=engine, seed=cfg.train.seed)
    loader.model = initial_model(cfg).eval()
    return loader


def test_training_on_stored_features_is_training_on_the_frames(recipe, monkeypatch):
    options = ["model.train_from=none", "model.random_frozen=true", "model.centre=true"]
    assert main([recipe, *options, "train.run_dir=frames"]) == 0
    monkeypatch.setattr(training.train, "training_loader", stored)
    assert main([recipe, *options, "data.cache=features", "train.run_dir=features"]) == 0
    assert same(weights("frames"), weights("features"))
    assert read_log("features")[-1]["loss"] > 0


def test_bf16_steps_on_stored_features(recipe, monkeypatch):
    monkeypatch.setattr(training.train, "training_loader", stored)
    options = ["model.train_from=none", "model.random_frozen=true", "data.cache=features"]
    for precision in ("fp32", "bf16"):
        run = [*options, f"train.precision={precision}", f"train.run_dir={precision}"]
        assert main([recipe, *run, "train.steps=2", "train.log_every=1"]) == 0
    loss32, loss16 = (read_log(name)[0]["loss"] for name in ("fp32", "bf16"))
    assert loss16 != loss32
    assert loss16 == pytest.approx(loss32, rel=0.03)
