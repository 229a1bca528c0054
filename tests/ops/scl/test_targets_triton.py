"""scl_loss's Triton kernels with targets other than the Gaussian, interpreted without a GPU."""

import pytest
import torch
from tolerance import as_accurate_as, interpreted

from fastseq.ops.scl.options import TARGETS
from ops.scl.cases import brute_force
from ops.scl.test_triton import DEVICE, check, randint, randn, run

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread", "nan_empty"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

EACH = pytest.mark.parametrize("target", [target for target in TARGETS if target != "gauss"])


@EACH
def test_equals_loops(target):
    z1, z2 = randn(2, 7, 5), randn(2, 9, 5, seed=1)
    t1, t2 = randint(0, 60, 2, 7), randint(0, 60, 2, 9, seed=1)
    m1, m2 = randint(0, 4, 2, 7, seed=2) > 0, randint(0, 4, 2, 9, seed=3) > 0
    kw = {"target": target, "variance": 16.0}
    want = sum(r.sum(1) for r in brute_force(z1, z2, t1, t2, m1, m2, **kw))
    kw |= {"valid1": m1, "valid2": m2, "reduction": "none"}
    got, plain = (run(z1, z2, t1, t2, backend=b, **kw)[0] for b in ("triton", "reference"))
    as_accurate_as(got.cpu(), plain.cpu(), want)


@EACH
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_ragged(target, temperature):
    """Unsorted and repeated times, isolated rows, more than one tile in both views."""
    z1, z2 = randn(2, 97, 16), randn(2, 70, 16, seed=1)
    times = randint(0, 400, 2, 97, seed=3), randint(0, 400, 2, 70, seed=4)
    kw = {"target": target, "temperature": temperature, "lengths1": [97, 30]}
    check(z1, z2, *times, variance=40.0, objective="ce", **kw)
    check(z1, z2, variance=16.0, negatives="video", reduction="paper", **kw)


@EACH
def test_variance_in_a_tensor(target):
    z1, z2 = randn(1, 40, 8), randn(1, 33, 8, seed=1)
    t1, t2 = randint(0, 90, 1, 40), randint(0, 90, 1, 33, seed=1)
    number, tensor = (
        run(z1, z2, t1, t2, target=target, variance=v) for v in (25.0, torch.tensor(25.0))
    )
    for a, b in zip(tensor, number, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EACH
def test_half(target):
    kw = {"target": target, "dtype": torch.bfloat16, "lengths1": [65, 30]}
    z1, z2 = randn(2, 65, 17), randn(2, 40, 17, seed=1)
    check(z1, z2, grad=interpreted(torch.bfloat16, DEVICE), **kw)


@EACH
def test_far_neighbours(target):
    """With the nearest frame 0 to 46 frames away, each row's targets sum to 1, or none exist."""
    z1, z2 = randn(6, 1, 8), randn(6, 3, 8, seed=1)
    gaps = torch.tensor([0, 1, 20, 21, 45, 46])
    t1, t2 = torch.zeros(6, 1), torch.stack([gaps, gaps + 1, gaps + 3], 1).float()
    variance = 400.0 if target == "box" else 10.0
    kw = {"reduction": "none", "target": target, "variance": variance}
    got = check(z1, z2, t1, t2, **kw)
    want = run(z1.float(), z2.float(), t1, t2, dtype=torch.float64, backend="reference", **kw)
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=1e-5)
    reach = 20 if target == "box" else 45
    assert ((got[0].cpu() != 0) == (gaps <= reach)).all()
    assert ((got[1].cpu() != 0).any((1, 2)) == (gaps <= reach)).all()


@EACH
def test_nan_in_a_real_timestamp_is_not_hidden(target):
    z1, z2, t = randn(2, 20, 8), randn(2, 20, 8, seed=1), torch.arange(20.0).repeat(2, 1)
    kw = {"lengths1": [15, 20], "reduction": "none", "target": target}
    clean = run(z1, z2, t, t, **kw)[0]
    for frame in (3, 17):
        bad = t.clone()
        bad[0, frame] = torch.nan
        got = run(z1, z2, bad, t, **kw)[0]
        assert got[0].isnan() == (frame == 3)
        assert got[1] == clean[1]
