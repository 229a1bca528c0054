"""contrastive_idm: changes that must not affect its value, and scaling, on drawn inputs."""

import pytest
import torch

import fastseq

pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=25)
@given(st.data())
def test_invariances(data):
    """Order of frames, offset of time, translation and rotation of the embeddings, units."""
    num, frames = 2, data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, frames, 4, dtype=torch.float64, generator=generator)
    times = st.lists(st.integers(0, 60), min_size=num * frames, max_size=num * frames)
    t = torch.tensor(data.draw(times)).view(num, frames)
    kw = {
        "kind": data.draw(st.sampled_from(["contrastive", "idm", "sfa"])),
        "weights": data.draw(st.sampled_from(["paper", "code"])),
        "distance": data.draw(st.sampled_from(["sqeuclidean", "euclidean"])),
        "reduction": data.draw(st.sampled_from(["none", "mean", "sum"])),
        "window": data.draw(st.integers(0, 40)),
    }
    shift = torch.randn(4, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    order = torch.randperm(frames, generator=generator)
    for backend in ("reference", "torch"):

        def loss(z, t, backend=backend, **change):
            return fastseq.contrastive_idm(z, t, backend=backend, **(kw | change))

        want = loss(z, t, margin=3.0)
        scaled = 9.0 if kw["distance"] == "sqeuclidean" else 3.0
        for same in (
            loss(z[:, order], t[:, order], margin=3.0),
            loss(z, t + 10**15, margin=3.0),
            loss(z, t.double() - 1e9, margin=3.0),
            loss(z, t.max() - t, margin=3.0),
            loss(z + 50 * shift, t, margin=3.0),
            loss(z @ turn, t, margin=3.0),
            loss(3 * z, t, margin=scaled * 3.0) / scaled,
        ):
            torch.testing.assert_close(same, want, rtol=1e-9, atol=1e-9)
