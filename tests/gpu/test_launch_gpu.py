"""Launches that bypass Triton's launcher, and programs that use a counter, on a real GPU."""

import pytest
import torch

import fastseq

pytestmark = pytest.mark.gpu

SHAPE = (4, 300, 64)


def call(op, seed, dtype=torch.bfloat16):
    """A function that returns the loss and its gradients for its own inputs."""
    make = torch.Generator("cuda").manual_seed(seed)
    z1, z2 = (
        torch.randn(*SHAPE, device="cuda", generator=make).to(dtype).requires_grad_()
        for _ in range(2)
    )
    q = z1[0].detach().requires_grad_()
    options = {"backend": "triton"}
    run, leaves = {
        "scl": (lambda: fastseq.scl_loss(z1, z2, **options), (z1, z2)),
        "contrastive_idm": (lambda: fastseq.contrastive_idm(z1, kind="sfa", **options), (z1,)),
        "tcc": (lambda: fastseq.tcc_loss(z1, z2, **options), (z1, z2)),
        "queue_nce": (
            lambda: fastseq.queue_nce(q, z2[0].detach(), z2[1].detach(), **options),
            (q,),
        ),
    }[op]

    def both():
        loss = run()
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    return both


OPS = ("scl", "contrastive_idm", "tcc", "queue_nce")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_direct_launch_gives_the_bits_of_the_public_one(op, monkeypatch):
    from fastseq.ops.common import launch

    both = call(op, 0)
    both()
    direct = both()
    launch.clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(launch, "KNOWN", ())
            public = both()
    finally:
        launch.clear()
    assert same(direct, public)


@pytest.mark.timeout(180)  # Inductor alone takes 20 to 40 s
def test_graphs_that_torch_compile_keeps():
    """Its warm-up allocates from the graph's pool, in which nothing may remain."""
    make = torch.Generator("cuda").manual_seed(0)
    z1, z2 = torch.randn(2, *SHAPE, device="cuda", generator=make).unbind()

    def loss(z1, z2):
        return fastseq.scl_loss(z1, z2) + fastseq.contrastive_idm(z1, kind="sfa")

    compiled = torch.compile(loss, mode="reduce-overhead")
    want = loss(z1, z2)
    for _ in range(4):
        assert torch.equal(compiled(z1, z2).clone(), want)


@pytest.mark.parametrize("op", ["scl", "contrastive_idm"])
def test_streams_do_not_share_a_ticket(op):
    """Simultaneous calls on several streams: each stream has its own counter of programs."""
    calls = [call(op, seed) for seed in range(4)]
    want = [both() for both in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    got = [[] for _ in calls]
    for _ in range(25):
        for both, stream, results in zip(calls, streams, got, strict=True):
            with torch.cuda.stream(stream):
                results.append(both())
    torch.cuda.synchronize()
    for results, expected in zip(got, want, strict=True):
        assert all(same(result, expected) for result in results)


@pytest.mark.parametrize("op", ["scl", "contrastive_idm"])
def test_a_graph_replays_beside_calls_on_the_stream_of_its_capture(op):
    first, second = call(op, 0), call(op, 1)
    want = first(), second()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        held = first()
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    for _ in range(25):
        with torch.cuda.stream(other):
            graph.replay()
        with torch.cuda.stream(side):
            again = second()
        torch.cuda.synchronize()
        assert same(held, want[0])
        assert same(again, want[1])
