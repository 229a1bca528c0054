"""VCLR's step on a GPU, compared with the same step on the CPU."""

import pytest
import torch

pytest.importorskip("omegaconf", reason='needs omegaconf: pip install "fastseq[train]"')
pytest.importorskip("tqdm", reason='needs tqdm: pip install "fastseq[train]"')

from fastseq.video.tuples import anchors
from training.loop.optimizer import make_optimizer
from training.loop.vclr_step import VCLRStep
from training.recipe.load import load_config
from training.runs.model import initial_model

pytestmark = pytest.mark.gpu
SMALL = ["model.backbone=resnet18", "model.pool=mean", "loss.vclr.queue_size=64"]


def two_steps(device: str, *, precision: torch.dtype = torch.float32):
    """Results of two steps on synthetic tuples of 8 videos, and the state after them."""
    cfg = load_config("recipes/vclr_demo.yaml", SMALL)
    generator = torch.Generator().manual_seed(0)
    model = initial_model(cfg).to(device).train()
    optimizer = make_optimizer(cfg, model)
    step = VCLRStep(cfg, model, optimizer, torch.device(device), precision)
    results = []
    for _ in range(2):
        steps = torch.rand(8, 7, generator=generator).argsort(1) * 10
        steps[:, 6] = steps[:, 0]
        assert (anchors(steps[..., None]) == 0).all()
        frames = torch.randint(0, 256, (8, 7, 1, 3, 64, 64), generator=generator)
        batch = {
            "frames": frames.to(torch.uint8),
            "steps": steps[..., None],
            "valid": torch.ones(8, 7, 1, dtype=torch.bool),
        }
        results.append(step([batch], 1e-3, list))
    return results, {key: value.cpu() for key, value in model.state_dict().items()}


def test_steps_are_those_of_the_cpu():
    with torch.backends.cudnn.flags(allow_tf32=False):
        a, state = two_steps("cuda")
    b, expected = two_steps("cpu")
    for on_gpu, on_cpu in zip(a, b, strict=True):
        assert on_gpu.finite
        for name, value in on_cpu.losses.items():
            assert on_gpu.losses[name] == pytest.approx(value, rel=0.02, abs=1e-3), name
    assert state["queues.inter.pointer"] == expected["queues.inter.pointer"] == 48
    for name in ("inter", "video"):
        key = f"queues.{name}.features"
        assert (state[key] - expected[key]).abs().max() < 0.05, key


def test_bf16():
    (a, state), (b, _) = two_steps("cuda", precision=torch.bfloat16), two_steps("cuda")
    for half, full in zip(a, b, strict=True):
        assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert all(value.dtype != torch.bfloat16 for value in state.values())
