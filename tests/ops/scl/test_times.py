"""scl_loss: supported timestamps. Rows out of reach, NaN, spans that overflow their type."""

import pytest
import torch
from tolerance import as_accurate_as, rounding

import fastseq
from ops.scl.cases import brute_force, loss_and_grads, reduce

BACKENDS = ["reference", "torch"]


def _randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gap", [0, 1, 19, 30, 44, 45, 46, 100])
def test_isolated_rows_and_far_neighbours(backend, gap):
    """A row whose nearest frame is far still has a full target up to reach (45.4 frames), then
    exactly zero; it always counts in the mean.
    """
    z1, z2 = _randn(1, 4, 8, dtype=torch.float32), _randn(1, 3, 8, dtype=torch.float32, seed=1)
    t1 = torch.tensor([[0.0, 1, 2, 500]])
    t2 = torch.tensor([[0.0, 2, 500 + gap]])
    m1, m2 = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    loss, dz1, _ = loss_and_grads(z1, z2, t1, t2, backend=backend)
    rows = brute_force(z1, z2, t1, t2, m1, m2)
    assert loss.item() == pytest.approx(float(reduce(*rows, m1, m2, "mean")), rel=1e-5)
    if gap > 45:
        assert rows[0][0, 3] == 0
        # Row 3 keeps only the gradient as a candidate of view 2's rows.
        alone, dz_alone, _ = loss_and_grads(
            z1[:, 3:], z2[:, 2:], t1[:, 3:], t2[:, 2:], backend=backend
        )
        assert alone.item() == 0
        assert (dz_alone == 0).all()
    else:
        assert rows[0][0, 3] > 0
    assert dz1.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_real_timestamp_is_not_hidden(backend):
    """Its video is NaN, the other video is unchanged; in padding NaN has no effect."""
    z1, z2 = _randn(2, 4, 3), _randn(2, 4, 3, seed=1)
    t = torch.arange(4.0).expand(2, 4).clone()
    clean = fastseq.scl_loss(z1, z2, t, t, lengths1=[3, 4], reduction="none", backend=backend)
    for frame in (1, 3):
        bad = t.clone()
        bad[0, frame] = torch.nan
        got = fastseq.scl_loss(z1, z2, bad, t, lengths1=[3, 4], reduction="none", backend=backend)
        assert got[0].isnan() == (frame == 1)
        assert got[1] == clean[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_spans_of_time_beyond_the_integers_type(backend):
    z1, z2 = _randn(2, 3, 4), _randn(2, 3, 4, seed=1)
    near = torch.tensor([0, 1, 1000]), torch.tensor([0, 2, 997])
    want = fastseq.scl_loss(z1, z2, *near, backend=backend)
    for dtype in (torch.int8, torch.int32):
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        t1 = torch.tensor([low, low + 1, high], dtype=dtype)
        t2 = torch.tensor([low, low + 2, high - 3], dtype=dtype)
        torch.testing.assert_close(fastseq.scl_loss(z1, z2, t1, t2, backend=backend), want)
    # A real time is never treated as that of padding, however large.
    t1, t2 = torch.tensor([0, 10**18, 5]), torch.tensor([0, 10**18, 7])
    two = torch.tensor([True, True, False]).expand(2, 3)
    got = fastseq.scl_loss(z1, z2, t1, t2, valid1=two, backend=backend)
    want = fastseq.scl_loss(z1[:, :2], z2, t1[:2], t2, backend=backend)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_times_are_not_rounded(backend):
    """Differences between float32 times are exact; differences to an origin would not be."""
    z1, z2 = _randn(1, 40, 4), _randn(1, 40, 4, seed=1)
    t1, t2 = (2048 + _randn(1, 40, seed=s) for s in (2, 3))
    t1[0, 0] = 1 / 3  # subtracting it would round times below and above 2048 differently
    t1, t2 = t1.float(), t2.float()
    want = loss_and_grads(z1, z2, t1.double(), t2.double(), variance=0.01, backend="reference")
    for dtype in (torch.float32, torch.float64):
        z = z1.to(dtype), z2.to(dtype)
        got, plain = (
            loss_and_grads(*z, t1, t2, variance=0.01, backend=b) for b in (backend, "reference")
        )
        floor = rounding(torch.float32) if dtype == torch.float32 else 1e-12
        as_accurate_as(got, plain, want, floor=floor)
