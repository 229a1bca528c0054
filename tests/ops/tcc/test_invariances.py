"""tcc_loss: changes that must not affect its value, on drawn inputs."""

import pytest
import torch

import fastseq
from fastseq.ops.tcc.options import LOSS_TYPES, SIMILARITIES
from ops.tcc.cases import randn

pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30)
@given(st.data())
def test_invariances(data):
    """Swap of the sides, order of frames and sequences, origin and unit of time, offset of l2."""
    t1, t2 = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 2**16))
    kw = {
        "loss_type": data.draw(st.sampled_from(LOSS_TYPES)),
        "similarity": data.draw(st.sampled_from(SIMILARITIES)),
        "backend": data.draw(st.sampled_from(("reference", "torch"))),
        "temperature": data.draw(st.sampled_from((0.5, 2.0))),
    }
    x, y = randn(3, t1, 4, seed=seed), randn(3, t2, 4, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    s = torch.randint(0, 60, (3, t1 + t2), generator=generator)
    sx, sy = s[:, :t1], s[:, t1:]
    dx, dy = torch.tensor([[61.0, 61, 61], [60, 70, 80]]).double()

    def loss(x, y, sx, sy, dx, dy):
        return fastseq.tcc_loss(x, y, sx, sy, duration_x=dx, duration_y=dy, **kw)

    want = loss(x, y, sx, sy, dx, dy)
    frames, order = torch.randperm(t1, generator=generator), torch.tensor([2, 0, 1])
    same = [
        loss(y, x, sy, sx, dy, dx),
        loss(x[:, frames], y, sx[:, frames], sy, dx, dy),
        loss(*(part[order] for part in (x, y, sx, sy, dx, dy))),
        loss(x, y, sx + 10**15, sy - 10**15, dx, dy),
        loss(x, y, sx.double() / 25, sy.double() / 25, dx / 25, dy / 25),
    ]
    if kw["similarity"] == "l2":
        same.append(loss(x + 3, y + 3, sx, sy, dx, dy))
    for got in same:
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    batch = {"duration_x": dx, **kw}
    torch.testing.assert_close(
        fastseq.tcc_loss(x[order], None, sx[order], **(batch | {"duration_x": dx[order]})),
        fastseq.tcc_loss(x, None, sx, **batch),
        rtol=1e-9,
        atol=1e-11,
    )
