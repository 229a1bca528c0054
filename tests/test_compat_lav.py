"""compat.lav.LAV: the released module's constructor, call and values."""

import pytest
import torch
from ops.lav.cases import LENGTH_A, LENGTH_B, STEPS_A, STEPS_B, golden, released

import fastseq
from fastseq.compat.lav import LAV


def criterion(**change):
    options = {
        "alpha": 0.5,
        "sigma": 10,
        "margin": 2.0,
        "num_frames": 6,
        "dtw_gamma": 0.1,
        "dtw_normalize": False,
    }
    return LAV(**(options | change))


def test_the_released_call():
    """One pair; indices already divided by the video's length, lengths as a loader returns them."""
    a, b = (z.requires_grad_() for z in golden(torch.float32))
    a_idx, b_idx = torch.tensor(STEPS_A) / LENGTH_A, torch.tensor(STEPS_B) / LENGTH_B
    want = released(a[0].detach(), b[0].detach(), STEPS_A, STEPS_B, LENGTH_A, LENGTH_B)
    for a_len, b_len in (
        (torch.tensor([LENGTH_A]), torch.tensor([LENGTH_B])),
        (torch.tensor(LENGTH_A), torch.tensor(LENGTH_B)),
        (LENGTH_A, LENGTH_B),
    ):
        loss = criterion()(a, b, a_idx, b_idx, a_len, b_len, logger=None)
        assert loss.shape == (1,)
        assert loss.item() == pytest.approx(want, rel=1e-5)
    loss.backward()  # a scalar, as in the released loop
    assert a.grad.isfinite().all()
    debug = LAV(0.5, 10, 2.0, 6, 0.1, False, True)  # positional, as in the released train.py
    assert debug(a, b, a_idx, b_idx, LENGTH_A, LENGTH_B).item() == loss.item()


def test_several_pairs_are_the_function_with_its_released_form():
    z = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    a, b = torch.nn.functional.normalize(z, dim=-1)
    t = torch.randint(200, (2, 3, 20), generator=torch.Generator().manual_seed(1)).sort(2).values
    lengths = torch.tensor([[200, 211, 240], [205, 230, 200]])
    for normalize in (False, True):
        want = fastseq.lav_loss(
            a,
            b,
            *t,
            duration_x=lengths[0],
            duration_y=lengths[1],
            form="code",
            divergence=normalize,
            reduction="none",
        )
        module = criterion(num_frames=20, dtw_normalize=normalize)
        got = module(a, b, *(t / lengths[..., None]), *lengths)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_frames": 0}, ValueError),
        ({"alpha": -1}, ValueError),
        ({"dtw_normalize": 1}, TypeError),
    ],
)
def test_wrong_options(change, error):
    with pytest.raises(error, match="LAV"):
        criterion(**change)


def test_wrong_shape():
    z = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"shape \(B, N, D\)"):
        criterion()(z, z, torch.arange(4) / 4, torch.arange(4) / 4, 4, 4)
