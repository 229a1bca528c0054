"""scl_loss: changes that must not affect its value, on drawn inputs."""

import pytest
import torch

import fastseq

pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st


def _randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@settings(max_examples=25)
@given(st.data())
def test_invariances(data):
    """Order of frames, swap of views, offset of time and ties between times."""
    n, t1, t2 = 2, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 2**16))
    z1, z2 = _randn(n, t1, 4, seed=seed), _randn(n, t2, 4, seed=seed + 1)
    times = st.lists(st.integers(0, 60), min_size=n * (t1 + t2), max_size=n * (t1 + t2))
    s = torch.tensor(data.draw(times)).view(n, t1 + t2)
    s1, s2 = s[:, :t1], s[:, t1:]
    for backend in ("reference", "torch"):
        loss = fastseq.scl_loss(z1, z2, s1, s2, backend=backend)
        order = torch.randperm(t1, generator=torch.Generator().manual_seed(seed))
        for same in (
            fastseq.scl_loss(z2, z1, s2, s1, backend=backend),
            fastseq.scl_loss(z1[:, order], z2, s1[:, order], s2, backend=backend),
            fastseq.scl_loss(z1, z2, s1 + 10**15, s2 + 10**15, backend=backend),
            fastseq.scl_loss(z1, z2, s1.double() - 1e9, s2.double() - 1e9, backend=backend),
        ):
            torch.testing.assert_close(same, loss, rtol=1e-11, atol=1e-13)
