"""queue_nce: drawn shapes and options, and changes that must not affect its value."""

import pytest
import torch

import fastseq
from ops.queue_nce.cases import inputs, loss_and_grads

pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = {
    "n": st.integers(0, 12),
    "per_query": st.integers(1, 4),
    "length": st.integers(0, 40),
    "d": st.integers(1, 9),
    "seed": st.integers(0, 2**16),
}
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.02, 3),
        "normalize": st.booleans(),
        "reduction": st.sampled_from(["none", "mean", "sum"]),
    }
)


@settings(max_examples=40)
@given(**SIZES, options=OPTIONS, upstream=st.floats(-3, 3))
def test_blockwise_is_the_definition(n, per_query, length, d, seed, options, upstream):
    args = inputs(n, per_query, length, d, seed=seed)
    pair = [
        loss_and_grads(*args, upstream=upstream, backend=backend, **options)
        for backend in ("reference", "torch")
    ]
    for want, got in zip(*pair, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(**SIZES, options=OPTIONS)
def test_invariances(n, per_query, length, d, seed, options):
    """Order of the queue, of queries and of positives; rotation; units; a duplicated row."""
    q, positives, queue = inputs(n, per_query, length, d, seed=seed)
    make = torch.Generator().manual_seed(seed)
    options = options | {"reduction": "none"}
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=make))[0]
    order = torch.randperm(length, generator=make)
    for backend in ("reference", "torch"):

        def loss(*args, backend=backend, **change):
            return fastseq.queue_nce(*args, backend=backend, **(options | change))

        want = loss(q, positives, queue)
        tau = 5 * options["temperature"]
        for same in (
            loss(q, positives, queue[order]),
            loss(q.flip(0), positives.flip(0), queue).flip(0),
            loss(q, positives.flip(1), queue).flip(1),
            loss(q @ turn, positives @ turn, queue @ turn),
            loss(5 * q, positives, queue, **({} if options["normalize"] else {"temperature": tau})),
        ):
            torch.testing.assert_close(same, want, rtol=1e-8, atol=1e-8)
        if n and length:
            more = loss(q, positives, torch.cat([queue, queue[:1]]))
            assert (more >= want - 1e-12).all()
            assert (loss(q, positives, torch.cat([queue, queue])) >= more - 1e-12).all()
