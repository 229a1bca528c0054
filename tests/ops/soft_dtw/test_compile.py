"""soft_dtw as torch.library ops: opcheck, torch.compile in one graph, compiled equals eager."""

import pytest
import torch

import fastseq
from fastseq.ops.common.packing import pack, unpack
from fastseq.ops.soft_dtw.autograd import FUSED, _alignment_op
from ops.soft_dtw.cases import BACKENDS, backends, randn, value_and_grads

pytestmark = pytest.mark.compile


def _tensors(given):
    x, y = randn(2, 7, 4, seed=1).requires_grad_(), randn(2, 5, 4, seed=2).requires_grad_()
    lengths = torch.tensor([7, 3])
    if given == "embeddings":
        return x, y, None, None, lengths, None, torch.tensor([0.5, 2.0]).double(), None
    cost = randn(2, 7, 5, seed=3).requires_grad_()
    return None, None, cost, None, None, torch.tensor([4, 5]), None, torch.tensor([1, 3])


ALL = 0.5, None, True, True, 0.3, "logsumexp"


@pytest.mark.parametrize("given", ["embeddings", "costs"])
@backends(BACKENDS)
def test_opcheck(backend, given):
    tensors, options = _tensors(given), (backend, *ALL)
    fused = FUSED["soft_dtw" if given == "embeddings" else "soft_dtw_from_cost"]
    for keep in (True, False):
        # Without the tensors that the backward needs, there is no gradient to check.
        inputs = [t if keep or t is None else t.detach() for t in tensors]
        needs = [t is not None and t.requires_grad for t in inputs[:4]]
        assert any(needs) == keep
        torch.library.opcheck(fused.forward_op, (*inputs, *options, needs))
    needs = [t is not None for t in tensors[:4]]
    value, packed, layout = fused.forward_op(*tensors, *options, needs)
    inputs = [t if t is None else t.detach() for t in tensors]
    sides = [True, True], [True, False], [False, True]
    embeddings = [[*side, False, False] for side in sides]
    for needs in embeddings if given == "embeddings" else [[False, False, True, False]]:
        torch.library.opcheck(
            fused.backward_op, (torch.ones_like(value), *inputs, packed, layout, *options, needs)
        )


@backends(BACKENDS)
def test_opcheck_alignment(backend):
    x, y, _, bias, *constants = _tensors("embeddings")
    options = backend, *ALL
    torch.library.opcheck(_alignment_op, (x.detach(), y.detach(), bias, *constants, *options))


def test_what_is_saved_crosses_as_bytes():
    saved = (randn(3, 1), torch.arange(3), randn(2, 0), torch.tensor(7, dtype=torch.uint8))
    saved += (randn(1, 5).double(), randn(4, 3).mT)
    packed, layout = pack(saved, torch.device("cpu"))
    assert packed.dtype == torch.uint8
    for got, want in zip(unpack(packed, layout), saved, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    assert unpack(*pack((), torch.device("cpu"))) == ()


def _both(function, *tensors):
    out = []
    torch._dynamo.reset()
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        inputs = [t.clone().requires_grad_() for t in tensors]
        value = call(*inputs)
        out.append((value, *torch.autograd.grad(value.sum(), inputs)))
    return out


OPTIONS = {
    "plain": {},
    "cosine": {"cost": "cosine", "bandwidth": 2},
    "divergence": {"divergence": True, "lengths_y": [5, 0]},
    "ends": {"begin": "free", "end": "free", "warp_penalty": 0.3},
    "per_pair": {"gamma": torch.tensor([0.2, 0.7]), "bandwidth": torch.tensor([1, 3])},
}


@pytest.mark.parametrize("options", OPTIONS)
@backends(BACKENDS)
def test_compiled_equals_eager(backend, options):
    # Every pair of backend, options and autocast: in a graph the backend is just a word.
    autocast = (backend == "numba") != (options == "cosine")
    x, y, options = randn(2, 9, 4, seed=4), randn(2, 7, 4, seed=5), OPTIONS[options]

    def train(a, b):
        call = {"gamma": 0.2, "lengths_x": [9, 4], "backend": backend, **options}
        return fastseq.soft_dtw(a * 2, b, **call)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        eager, compiled = _both(train, x, y)
    for want, got in zip(eager, compiled, strict=True):
        assert torch.equal(want, got)


@backends(BACKENDS)
def test_compiled_costs_reductions_and_halves(backend):
    def costs(c):
        options = {"reduction": "mean", "lengths_x": [9, 0], "begin": "free", "end": "free"}
        return fastseq.soft_dtw_from_cost(c, **options, backend=backend)

    def halves(a, b):
        return fastseq.soft_dtw(a, b, gamma=0.2, backend=backend)

    x, y = randn(2, 9, 4, seed=6).bfloat16(), randn(2, 7, 4, seed=7).bfloat16()
    for eager, compiled in (_both(costs, randn(2, 9, 7, seed=8)), _both(halves, x, y)):
        for want, got in zip(eager, compiled, strict=True):
            assert torch.equal(want, got)


@backends(BACKENDS)
def test_compiled_with_only_one_gradient_and_with_none(backend):
    x, y = randn(2, 9, 4, seed=9), randn(2, 7, 4, seed=10)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.soft_dtw, fullgraph=True, backend="aot_eager")
    want = value_and_grads(x, y, backend=backend)
    for k in (0, 1):
        pair = [x.clone(), y.clone()]
        pair[k].requires_grad_()
        value = compiled(*pair, backend=backend)
        assert torch.equal(torch.autograd.grad(value.sum(), pair[k])[0], want[k + 1])
    with torch.no_grad():
        assert torch.equal(compiled(x.requires_grad_(), y, backend=backend), want[0])


@backends(BACKENDS)
def test_compiled_alignment(backend):
    x, y = randn(2, 9, 4, seed=11).requires_grad_(), randn(2, 7, 4, seed=12)
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.soft_dtw_alignment, fullgraph=True, backend="aot_eager")
    options = {"gamma": torch.tensor([0.3, 0.5]), "end": "free", "warp_penalty": 0.2}
    got = compiled(x, y, **options, backend=backend)
    assert torch.equal(got, fastseq.soft_dtw_alignment(x, y, **options, backend=backend))
    with pytest.raises(RuntimeError, match="alignment cannot be differentiated"):
        got.sum().backward()


@backends(BACKENDS)
def test_other_lengths_and_gammas_compile_once_more(backend):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(fastseq.soft_dtw, fullgraph=True, backend=counter)
    for frames in (5, 8, 11, 14):
        x, y = randn(2, frames, 3, seed=13).requires_grad_(), randn(2, frames + 2, 3, seed=14)
        value = compiled(x, y, backend=backend)
        assert torch.equal(value, fastseq.soft_dtw(x, y, backend=backend))
        value.sum().backward()
    assert counter.frame_count == 2
    for gamma in (0.2, 0.3, 0.4):
        kw = {"gamma": gamma, "backend": backend}
        assert torch.equal(compiled(x, y, **kw), fastseq.soft_dtw(x, y, **kw))


@backends(BACKENDS)
def test_compiled_with_a_list_of_bands(backend):
    x, y = randn(2, 9, 4, seed=17), randn(2, 7, 4, seed=18)

    def train(a, b):
        return fastseq.soft_dtw(a, b, bandwidth=[1, 4], lengths_x=[9, 5], backend=backend)

    for want, got in zip(*_both(train, x, y), strict=True):
        assert torch.equal(want, got)


def test_compiled_forward_mode_is_an_error_not_zero():
    x, y = randn(2, 5, 3, seed=15), randn(2, 5, 3, seed=16)

    def tangent(a, b):
        return torch.func.jvp(lambda z: fastseq.soft_dtw(z, b), (a,), (b,))[1]

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match='backend="reference"'):
        torch.compile(tangent, backend="aot_eager")(x, y)
