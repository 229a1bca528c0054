"""The backbone in chunks, recomputed in the backward: the same gradients and statistics."""

import copy
import functools

import pytest
import torch
from narrow import narrow_resnet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastseq
from training.loop.dry_run import saved_bytes, saved_bytes_per_frame
from training.models import CarlModel, ContextEncoder, ResNet, SmallCNN, build_model
from training.recipe.load import ConfigError, load_config

BACKBONES = {
    "layer4": lambda: narrow_resnet(18, "layer4"),
    "all": lambda: narrow_resnet(18, "all"),
    "batch_norm": lambda: narrow_resnet(18, "batch_norm", "layer3"),
    "none": lambda: narrow_resnet(18, "none"),
    "small_cnn": lambda: SmallCNN(32),
}


def carl(backbone: str, **options) -> CarlModel:
    torch.manual_seed(0)
    sizes = {"fc_size": 16, "layers": 1, "hidden_size": 16, "heads": 2, "ff_size": 32}
    return CarlModel(BACKBONES[backbone](), num_frames=6, embedding_size=8, **sizes | options)


def context(**options) -> ContextEncoder:
    torch.manual_seed(0)
    sizes = {"num_context": 2, "conv_size": 6, "fc_size": 7, "embedding_size": 5}
    return ContextEncoder(narrow_resnet(18, "layer3", "conv4c"), **sizes | options)


def clips(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def padded(n: int, t: int, lengths: list[int]) -> torch.Tensor:
    return torch.arange(t) < torch.tensor(lengths)[:, None]


def step(model, frames, valid, bf16: bool = False):
    """Gradients, buffers and the random state after one forward and backward."""
    model.train()
    torch.manual_seed(7)  # for the dropouts
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        z = model(frames, valid)
    z.float().sin().sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return gradients, dict(model.named_buffers()), torch.get_rng_state()


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpointing_changes_nothing(backbone, ragged, bf16):
    frames = clips((2, 6, 3, 32, 32))
    valid = padded(2, 6, [6, 5]) if ragged else None
    kept = carl(backbone, chunk_frames=4, checkpointing=False)
    again = carl(backbone, chunk_frames=4, checkpointing=True)
    before = copy.deepcopy(dict(kept.named_buffers()))
    expected, got = step(kept, frames, valid, bf16), step(again, frames, valid, bf16)
    assert expected[0]
    assert_same(expected[0], got[0])
    assert_same(expected[1], got[1])
    assert torch.equal(expected[2], got[2])
    moved = {k for k, v in got[1].items() if not torch.equal(v, before[k])}
    counters = {k: int(got[1][k]) for k in moved if k.endswith("num_batches_tracked")}
    in_backbone = {k: v for k, v in counters.items() if k.startswith("backbone.")}
    assert set(in_backbone.values()) == (set() if backbone == "none" else {3})  # chunks
    assert all(v == 1 for k, v in counters.items() if k not in in_backbone)


def test_running_statistics_are_those_of_every_chunk_once():
    model = carl("small_cnn", chunk_frames=4)
    frames = clips((2, 6, 3, 32, 32))
    first = next(m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    mean, variance = torch.zeros(16), torch.ones(16)
    with torch.no_grad():
        for chunk in range(3):
            x = model._normalise(frames.flatten(0, 1)[chunk::3])
            x = first(x).transpose(0, 1).flatten(1)
            mean = 0.9 * mean + 0.1 * x.mean(1)
            variance = 0.9 * variance + 0.1 * x.var(1)
    step(model, frames, None)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1


def test_a_second_backward_leaves_the_statistics_alone_too():
    model = carl("small_cnn", chunk_frames=4).train()
    loss = model(clips((2, 6, 3, 32, 32))).sin().sum()
    after_forward = copy.deepcopy(dict(model.named_buffers()))
    once = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    twice = torch.autograd.grad(loss, [*model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert_same(dict(model.named_buffers()), after_forward)


def test_dropout_in_a_backbone_is_drawn_once():
    gradients = []
    for checkpointing in (False, True):
        model = carl("small_cnn", chunk_frames=4, checkpointing=checkpointing)
        model.backbone.layers.insert(3, nn.Dropout(0.5))
        gradients.append(step(model, clips((2, 6, 3, 32, 32)), None)[0])
    assert_same(*gradients)


def test_the_context_encoder_in_checkpointed_chunks():
    frames, valid = clips((2, 4, 2, 3, 32, 32)), padded(2, 4, [4, 2])
    results = [
        step(context(chunk_frames=5, checkpointing=checkpointing), frames, valid)
        for checkpointing in (False, True)
    ]
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
    changed = frames.clone()
    changed[1, 2:] = 0
    assert_same(results[1][0], step(context(chunk_frames=5), changed, valid)[0])


@pytest.mark.parametrize("backbone", ["layer4", "small_cnn"])
def test_in_eval_mode_chunks_equal_the_whole(backbone):
    frames, valid = clips((2, 6, 3, 32, 32)), padded(2, 6, [6, 3])
    whole, chunked = carl(backbone, chunk_frames=0), carl(backbone, chunk_frames=4)
    for model in (whole, chunked):  # statistics that differ from the initial ones, the same in both
        model.load_state_dict(step(carl(backbone), frames, None) and model.state_dict())
        model.eval()
    torch.testing.assert_close(chunked(frames, valid), whole(frames, valid))
    gradients = []
    for model in (whole, chunked):
        z = model(frames, valid)
        gradients.append(torch.autograd.grad(z.sin().sum(), model.projection[0].weight)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("backbone", "kept_a_frame"), [("layer4", 256), ("small_cnn", 0)])
def test_what_is_kept_of_a_frame(backbone, kept_a_frame):
    """A narrow ResNet-18 at 32 px keeps layer3's map of 64 x 2 x 2, and otherwise only the
    frames.
    """
    kept = {}
    for chunks in (2, 6):
        model = carl(backbone, chunk_frames=4).train()
        own = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
        bytes_of: dict[int, int] = {}

        def keep(tensor, own=own, bytes_of=bytes_of):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage.data_ptr() not in own:
                bytes_of[storage.data_ptr()] = storage.nbytes()
            return tensor

        images = clips((4 * chunks, 3, 32, 32))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model._per_frame(images, None, pooled=True)
        kept[chunks] = sum(bytes_of.values())
        del features
    assert kept[6] - kept[2] == 16 * 4 * kept_a_frame


def test_frozen_parts_are_not_computed_again():
    model = carl("layer4", chunk_frames=4).train()
    calls = {"layer3": 0, "layer4": 0}
    for name in calls:

        def count(module, args, name=name):
            calls[name] += 1

        getattr(model.backbone, name).register_forward_pre_hook(count)
    model(clips((2, 6, 3, 32, 32))).sum().backward()
    assert calls == {"layer3": 3, "layer4": 6}


def test_one_chunk_is_not_computed_again():
    model = carl("small_cnn", chunk_frames=0).train()
    calls = []
    model.backbone.layers.register_forward_pre_hook(lambda module, args: calls.append(1))
    model(clips((2, 6, 3, 32, 32))).sum().backward()
    assert len(calls) == 1


class HostReads(TorchDispatchMode):
    """Names of the operations that make the host wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(waiting) for waiting in self.WAITING):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


def test_a_step_without_padding_reads_nothing_back():
    model = carl("layer4", chunk_frames=4).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    frames, steps = clips((2, 6, 3, 32, 32)), torch.arange(6).expand(1, 6)
    with HostReads() as reads:
        z = model(frames)
        loss = fastseq.scl_loss(z[:1], z[1:], steps, steps, backend="reference")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
    assert reads.seen == set()
    with HostReads() as reads:
        model(frames, padded(2, 6, [6, 5]))
    assert "nonzero" in reads.seen  # so the list above does contain them


@pytest.mark.compile
def test_a_compiled_backbone_gives_the_same_gradients(monkeypatch):
    # Traced and split into forward and backward, but not compiled to C++, which takes a minute.
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    frames = clips((2, 6, 3, 32, 32))
    model = carl("small_cnn", chunk_frames=4)
    expected = step(copy.deepcopy(model), frames, None)
    model.compile_backbone()
    got = step(model, frames, None)
    for key, value in expected[0].items():
        torch.testing.assert_close(got[0][key], value, rtol=1e-3, atol=1e-4, msg=key)
    for key, value in expected[1].items():
        torch.testing.assert_close(got[1][key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert got[1]["backbone.layers.1.num_batches_tracked"] == 3


def test_keys_of_a_recipe_reach_the_model(tmp_path):
    options = ["model.backbone=resnet18", "train.chunk_frames=12", "train.checkpointing=false"]
    model = build_model(load_config("recipes/carl.yaml", options), load_weights=False)
    assert (model.chunk_frames, model.checkpointing) == (12, False)
    model = build_model(load_config("recipes/carl.yaml", options[:1]), load_weights=False)
    assert (model.chunk_frames, model.checkpointing) == (None, True)
    assert model.train().chunk_size() == 80  # layer4's batch norms use batch statistics
    with pytest.raises(ConfigError, match=r"train.chunk_frames: expected at least 0, got -1"):
        load_config("recipes/carl.yaml", ["train.chunk_frames=-1"])
    with pytest.raises(
        ConfigError, match=r"frames_per_chunk'. It is now called 'train.chunk_frames'"
    ):
        load_config("recipes/carl.yaml", ["model.frames_per_chunk=40"])
    old = tmp_path / "old.yaml"
    old.write_text("model: {frames_per_chunk: 40}\n")
    with pytest.raises(ConfigError, match=r"old.yaml.*It is now called 'train.chunk_frames'"):
        load_config(old)


def test_a_dry_run_counts_what_is_kept(monkeypatch):
    """For the real ResNet-18, whose head is small in comparison."""
    monkeypatch.setitem(BACKBONES, "layer4", lambda: ResNet(18, "layer4"))
    model = carl("layer4", chunk_frames=80)
    whole = saved_bytes_per_frame(model, 32, torch.float32)  # 12 frames at most: one chunk
    assert saved_bytes(model, 80, 32, torch.float32) == pytest.approx(80 * whole)
    kept = saved_bytes(model, 8000, 32, torch.float32) - 80 * whole
    # layer3's map and a narrow head, a fraction of the values that layer4 computes.
    assert 7920 * 4096 < kept < 7920 * (4096 + 8192)
    assert kept < 7920 * whole / 3
    model.checkpointing = False
    whole = saved_bytes_per_frame(model, 32, torch.float32)
    assert saved_bytes(model, 8000, 32, torch.float32) == pytest.approx(8000 * whole)
    assert model.chunk_frames == 80
