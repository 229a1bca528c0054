"""compat.carl.SCL: the released class's constructor, call and values."""

from types import SimpleNamespace

import pytest
import torch
from ops.scl.cases import golden

import fastseq
from fastseq.compat.carl import SCL


def _config(negative_type="single_noself", positive_type="gauss"):
    return SimpleNamespace(
        SCL=SimpleNamespace(
            POSITIVE_TYPE=positive_type,
            NEGATIVE_TYPE=negative_type,
            SOFTMAX_TEMPERATURE=0.1,
            LABEL_VARIENCE=10.0,
        ),
        TRAIN=SimpleNamespace(NUM_FRAMES=6),
        MODEL=SimpleNamespace(PROJECTION=True),
    )


def _loss(algorithm, masks=None):
    z, steps, lengths = golden()
    z.requires_grad_()
    loss = algorithm.compute_sequence_loss(z, lengths, steps, masks)["loss"]
    return loss.item(), torch.autograd.grad(loss, z)[0].norm().item()


def test_exact_reproduces_the_released_value():
    # Measured by running the released module on this input (float32).
    assert _loss(SCL(_config(), exact=True)) == pytest.approx((8.104879, 3.027793), rel=1e-5)


def test_clean_is_the_default():
    assert _loss(SCL(_config())) == pytest.approx((9.19701, 5.54309), rel=1e-5)


@pytest.mark.parametrize(
    ("negative_type", "negatives"),
    [("single_noself", "cross"), ("single", "video"), ("batch_noself", "batch")],
)
def test_exact_and_clean_agree_where_the_epsilon_is_small(negative_type, negatives):
    """The epsilon matters only where a softmax weight is near 1e-6; no weight is at tau = 10."""
    cfg = _config(negative_type)
    cfg.SCL.SOFTMAX_TEMPERATURE = 10.0
    masks = torch.ones(4, 1, 6)
    masks[1, 0, 4:] = 0
    z, steps, lengths = golden(torch.float64)
    exact = SCL(cfg, exact=True).compute_sequence_loss(z, lengths, steps, masks)["loss"]
    clean = SCL(cfg).compute_sequence_loss(z, lengths, steps, masks)["loss"]
    assert SCL(cfg).negatives == negatives
    assert clean.item() == pytest.approx(exact.item(), rel=1e-4)


def test_compute_loss_calls_the_model_as_the_released_loop_does():
    z, steps, lengths = golden()
    calls = {}

    def model(videos, num_frames, video_masks=None, project=False):
        calls.update(shape=tuple(videos.shape), frames=num_frames, project=project)
        calls["masks"] = tuple(video_masks.shape)
        return z.view(4, 6, 8)

    videos = torch.zeros(2, 2, 6, 3, 4, 4)
    masks = torch.ones(2, 2, 6)
    out = SCL(_config()).compute_loss(model, videos, lengths, steps, masks)
    assert calls == {"shape": (4, 6, 3, 4, 4), "frames": 6, "project": True, "masks": (4, 1, 6)}
    want = fastseq.scl_loss(z[:, 0], z[:, 1], steps[:, 0], steps[:, 1], normalize=False)
    assert out["loss"] == want


def test_unsupported_settings_are_errors():
    with pytest.raises(ValueError, match="POSITIVE_TYPE must be 'gauss', got 'linear'"):
        SCL(_config(positive_type="linear"))
    with pytest.raises(ValueError, match="exact=True"):
        SCL(_config("batch"))
    assert SCL(_config("batch"), exact=True).negatives is None
