"""soft_dtw and related functions: wrong input, reductions, dtypes, choice of backend, second
order.
"""

import warnings

import numpy as np
import pytest
import torch

import fastseq
from fastseq.ops.common import dispatch, fused
from fastseq.ops.common.dispatch import choose_backend
from fastseq.ops.soft_dtw import op
from fastseq.ops.soft_dtw.op import resolve_backend
from ops.soft_dtw.cases import BACKENDS, backends, randn, relative, value_and_grads


def _arguments(**change):
    z = torch.zeros(2, 4, 3)
    return {"x": z, "y": z, **change}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"y": torch.zeros(2, 4, 3).long()}, TypeError, "y must be float64.*got torch.int64"),
        ({"x": torch.zeros(4)}, ValueError, r"got \(4,\)"),
        ({"x": torch.zeros(2, 4, 0), "y": torch.zeros(2, 4, 0)}, ValueError, "D >= 1"),
        ({"y": torch.zeros(3, 4, 3)}, ValueError, r"\(2, 4, 3\) and \(3, 4, 3\)"),
        ({"y": torch.zeros(2, 4, 5)}, ValueError, "agree in N and D"),
        ({"lengths_x": [4, 5]}, ValueError, "lengths_x must lie between 0 and T = 4, got 5"),
        ({"lengths_y": [-1, 4]}, ValueError, "got -1"),
        ({"lengths_x": [4]}, ValueError, r"shape \(2,\), got \(1,\)"),
        ({"lengths_y": torch.ones(2)}, TypeError, "lengths_y must be integers"),
        ({"gamma": 0}, ValueError, "greater than 0, got 0"),
        ({"gamma": float("nan")}, ValueError, "finite"),
        ({"gamma": torch.tensor(0.1).requires_grad_()}, TypeError, r"pass gamma.detach\(\)"),
        ({"gamma": torch.tensor([1, 2])}, TypeError, "gamma must be a number or a tensor of float"),
        ({"gamma": torch.ones(3)}, ValueError, r"shape \(\) or \(2,\), one for each.*got \(3,\)"),
        ({"gamma": torch.tensor([0.5, -1.0])}, ValueError, "greater than 0, got -1.0"),
        ({"gamma": torch.tensor(float("nan"))}, ValueError, "finite .*got nan"),
        ({"gamma": torch.ones(2, device="meta")}, ValueError, "gamma must be on the CPU.*got meta"),
        ({"gamma": "1"}, TypeError, "gamma must be a number, got str"),
        ({"bandwidth": -1}, ValueError, "bandwidth must be 0 or more, or None, got -1"),
        ({"bandwidth": 2.0}, TypeError, "bandwidth must be an integer or None, got float"),
        ({"bandwidth": True}, TypeError, "got bool"),
        ({"bandwidth": torch.tensor(2)}, ValueError, r"have shape \(2,\), one for each.*got \(\)"),
        ({"bandwidth": [1, 2, 3]}, ValueError, r"got \(3,\)"),
        ({"bandwidth": [1, -2]}, ValueError, "bandwidth must be 0 or more, or None, got -2"),
        ({"bandwidth": [1, 2.5]}, TypeError, "bandwidth must be integers, got torch.float32"),
        ({"bandwidth": [1, None]}, TypeError, r"bandwidth must be integers, got \[1, None\]"),
        ({"bandwidth": (True, False)}, TypeError, "bandwidth must be integers"),
        ({"bandwidth": torch.ones(2)}, TypeError, "bandwidth must be integers, got torch.float32"),
        ({"begin": "open"}, ValueError, r"begin must be one of \('fixed', 'free'\), got 'open'"),
        ({"end": True}, ValueError, r"end must be one of \('fixed', 'free'\), got True"),
        (
            {"warp_penalty": -0.1},
            ValueError,
            "warp_penalty must be finite and at least 0, got -0.1",
        ),
        ({"warp_penalty": float("nan")}, ValueError, "warp_penalty must be finite"),
        ({"warp_penalty": torch.ones(())}, TypeError, "warp_penalty must be a Python number"),
        (
            {"begin": "free", "divergence": True},
            ValueError,
            "divergence=True needs begin='fixed' and end='fixed', got 'free' and 'fixed'.*to fix",
        ),
        ({"cost": "l1"}, ValueError, "'sqeuclidean', 'cosine'"),
        ({"divergence": 1}, TypeError, "True or False, got 1"),
        ({"reduction": "avg"}, ValueError, "'none', 'mean', 'sum'"),
        ({"backend": "triton"}, ValueError, "unknown backend 'triton'"),
        ({"backend": "cuda"}, RuntimeError, "tensors are on cpu; to fix: move them to a CUDA"),
    ],
)
def test_wrong_input_says_what_came_and_what_was_expected(change, error, text):
    with pytest.raises(error, match=text):
        fastseq.soft_dtw(**_arguments(**change))


@pytest.mark.parametrize(
    ("cost", "error", "text"),
    [
        ([[1.0]], TypeError, "cost must be a torch.Tensor, got list"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, "got torch.int32"),
        (torch.zeros(3), ValueError, r"\(N, T, S\), or \(T, S\).*got \(3,\)"),
    ],
)
def test_wrong_costs(cost, error, text):
    with pytest.raises(error, match=text):
        fastseq.soft_dtw_from_cost(cost)


def test_wrong_input_of_the_alignment_names_it():
    with pytest.raises(ValueError, match="soft_dtw_alignment: x and y must agree"):
        fastseq.soft_dtw_alignment(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="soft_dtw_alignment: cost"):
        fastseq.soft_dtw_alignment(torch.zeros(2, 3), torch.zeros(2, 3), cost="l2")


@backends()
def test_reductions_and_single_pairs(backend):
    x, y = randn(4, 20, 3, seed=1), randn(4, 25, 3, seed=2)
    lengths = {"lengths_x": torch.tensor([20, 0, 7, 20]), "lengths_y": [25, 9, 11, 0]}
    options = {"gamma": 0.5, "backend": backend}
    each = fastseq.soft_dtw(x, y, **options, **lengths)
    assert each.shape == (4,)
    total = fastseq.soft_dtw(x, y, reduction="sum", **options, **lengths)
    mean = fastseq.soft_dtw(x, y, reduction="mean", **options, **lengths)
    assert torch.equal(total, each.sum())
    assert torch.allclose(mean, (each[0] + each[2]) / 2)  # two pairs have frames on both sides
    assert torch.equal(fastseq.soft_dtw(x, y, reduction="mean", **options).ndim * mean, mean * 0)
    full = fastseq.soft_dtw(x, y, **options)
    assert torch.allclose(fastseq.soft_dtw(x, y, reduction="mean", **options), full.mean())
    for k, (n, m) in enumerate([(20, 25), (0, 9), (7, 11), (20, 0)]):
        pair = {"lengths_x": n, "lengths_y": m}
        alone = fastseq.soft_dtw(x[k], y[k], **options, **pair)
        assert alone.shape == ()
        assert torch.equal(alone, each[k])
        expected = fastseq.soft_dtw_alignment(x[k], y[k], **options, **pair)
        assert expected.shape == (20, 25)
    cost = torch.cdist(x, y).square()
    assert fastseq.soft_dtw_from_cost(cost[0], **options).shape == ()
    mean = fastseq.soft_dtw_from_cost(cost, reduction="mean", **options, **lengths)
    assert torch.allclose(mean, (each[0] + each[2]) / 2, rtol=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@backends()
def test_half_precision_gives_float32_values_and_half_gradients(backend, half):
    x, y = randn(2, 30, 4, seed=3).to(half), randn(2, 28, 4, seed=4).to(half)
    for options in ({}, {"cost": "cosine"}, {"divergence": True}):
        value, dx, dy = value_and_grads(x, y, gamma=0.3, backend=backend, **options)
        assert (value.dtype, dx.dtype, dy.dtype) == (torch.float32, half, half)
        want, wx, wy = value_and_grads(
            x.double(), y.double(), gamma=0.3, backend="reference", **options
        )
        assert torch.allclose(value.double(), want, rtol=1e-5)
        eps = torch.finfo(half).eps
        for got, exact in ((dx, wx), (dy, wy)):
            assert relative(got.double(), exact) < eps
    mixed = fastseq.soft_dtw(x, y.double(), backend=backend)
    assert mixed.dtype == torch.float64
    cost = torch.cdist(x.float(), y.float()).to(half).requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, backend=backend)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value.sum(), cost)[0].dtype == half


@backends()
def test_autocast_changes_nothing(backend):
    x, y = randn(2, 30, 4, seed=5), randn(2, 28, 4, seed=6)
    for options in ({}, {"cost": "cosine"}, {"divergence": True}):
        plain = value_and_grads(x, y, gamma=0.1, backend=backend, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = value_and_grads(x, y, gamma=0.1, backend=backend, **options)
        assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fastseq.soft_dtw_alignment(x, y, backend=backend)
    assert torch.equal(cast, fastseq.soft_dtw_alignment(x, y, backend=backend))


@backends(BACKENDS)
def test_second_derivatives_are_an_error_not_wrong(backend):
    x, y = randn(1, 6, 2, seed=7).requires_grad_(), randn(1, 5, 2, seed=8)
    value = fastseq.soft_dtw(x, y, backend=backend)
    (dx,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        dx.square().sum().backward()
    expected = fastseq.soft_dtw_alignment(x, y, backend=backend)
    with pytest.raises(RuntimeError, match=r'soft_dtw_alignment\(..., backend="reference"\)'):
        expected.square().sum().backward()


def test_second_derivatives_of_the_definition():
    """Compared with finite differences of the gradient, packages that allow this silently are
    wrong.
    """
    x, y = randn(1, 6, 2, seed=7).double().requires_grad_(), randn(1, 5, 2, seed=8).double()
    step = 1e-6 * randn(1, 6, 2, seed=9).double()

    def gradient(at, **kw):
        value = fastseq.soft_dtw(at, y, gamma=0.5, backend="reference")
        return torch.autograd.grad(value.sum(), at, **kw)[0]

    (product,) = torch.autograd.grad((gradient(x, create_graph=True) * step).sum(), x)
    ahead, behind = (gradient((x + s * step).detach().requires_grad_()) for s in (1, -1))
    assert relative(product, (ahead - behind) / 2) < 1e-6

    expected = fastseq.soft_dtw_alignment(x, y, gamma=0.5, backend="reference")
    weights = randn(6, 5, seed=10).double()
    (dx,) = torch.autograd.grad((expected[0] * weights).sum(), x)

    def weighted(at):
        return (fastseq.soft_dtw_alignment(at, y, gamma=0.5, backend="reference") * weights).sum()

    with torch.no_grad():
        change = (weighted(x + step) - weighted(x - step)).item() / 2
    assert (dx * step).sum().item() == pytest.approx(change, rel=1e-5)


@backends()
def test_alignment_without_and_within_no_grad(backend):
    x, y = randn(2, 20, 3, seed=11), randn(2, 18, 3, seed=12)
    want = fastseq.soft_dtw_alignment(x, y, gamma=0.2, backend=backend)
    with torch.no_grad():
        got = fastseq.soft_dtw_alignment(x.requires_grad_(), y, gamma=0.2, backend=backend)
    assert not got.requires_grad
    assert torch.equal(got, want)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1).detach().requires_grad_()
    value = fastseq.soft_dtw_from_cost(cost, gamma=0.2, backend="reference")
    assert relative(want, torch.autograd.grad(value.sum(), cost)[0]) < 1e-5
    for kw in ({"cost": "cosine"}, {"bandwidth": 2}):
        plain = fastseq.soft_dtw_alignment(x.detach(), y, **kw, backend=backend)
        exact = fastseq.soft_dtw_alignment(x.detach().double(), y, **kw, backend="reference")
        assert relative(plain, exact) < 1e-5


def test_inference_mode():
    x, y = randn(2, 20, 3, seed=11), randn(2, 18, 3, seed=12)
    with torch.inference_mode():
        value = fastseq.soft_dtw(x, y)
    assert torch.equal(value, fastseq.soft_dtw(x, y))


@backends(BACKENDS)
def test_lengths_changed_in_place_after_the_call_do_not_matter(backend):
    x, y = randn(2, 20, 3, seed=13).requires_grad_(), randn(2, 18, 3, seed=14)
    lengths = torch.tensor([20, 11])
    want = value_and_grads(x, y, lengths_x=lengths.clone(), backend=backend)[1]
    value = fastseq.soft_dtw(x, y, lengths_x=lengths, backend=backend)
    lengths.zero_()
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], want)


def test_what_a_backend_gets(monkeypatch):
    """Contiguous float32 or float64, int64 lengths, and ``needs`` with the wanted gradients."""
    calls = []

    class Recorder:
        @staticmethod
        def forward(*args):
            calls.append(args)
            return (torch.zeros(2),)

        @staticmethod
        def backward(grad, x, *inputs, opts, needs):
            calls.append((grad, needs))
            return torch.zeros_like(x), None, None, None

    monkeypatch.setattr(fused, "_backend", lambda package, name: Recorder)
    x, y = randn(2, 3, 8).mT.bfloat16().requires_grad_(), randn(1, 5, 3).expand(2, -1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fastseq.soft_dtw(x, y, lengths_x=[8, 2], bandwidth=3, backend="torch").sum().backward()
    (a, b, cost, bias, lengths_x, lengths_y, *per_pair, opts, needs), (grad, needs_then) = calls
    for t in (a, b):
        assert t.is_contiguous()
        assert t.dtype == torch.float32
    assert lengths_x.dtype == torch.int64
    assert grad.dtype == torch.float32
    assert (cost, bias, lengths_y, *per_pair) == (None, None, None, None, None)
    assert opts == (1.0, 3, False, False, 0.0, "logsumexp")
    assert needs == needs_then == [True, False, False, False]
    with torch.no_grad():
        fastseq.soft_dtw(x, y, backend="torch")
    fastseq.soft_dtw(x.detach(), y, backend="torch")
    assert [call[-1] for call in calls[2:]] == [[False] * 4] * 2
    for gamma, band in ((torch.tensor([0.5, 2.0]).half(), [3, 2**40]), (torch.tensor(0.5), (3, 4))):
        fastseq.soft_dtw(x, y, gamma=gamma, bandwidth=band, begin="free", backend="torch")
        *_, gammas, bands, opts, _ = calls[-1]
        assert torch.equal(gammas, gamma.double().expand(2))
        assert bands.tolist() == [3, min(band[1], 2**30)]
        assert opts == (1.0, None, True, False, 0.0, "logsumexp")
    ends = {"end": "free", "warp_penalty": 2, "backend": "torch"}
    fastseq.soft_dtw(x[0], y[0], bandwidth=torch.tensor(4), **ends)
    *_, gammas, bands, opts, _ = calls[-1]
    assert (gammas, bands.tolist(), opts) == (
        None,
        [4],
        (1.0, None, False, True, 2.0, "logsumexp"),
    )


def test_numbers_of_numpy_are_numbers():
    x, y = randn(20, 3, seed=13), randn(18, 3, seed=14)
    want = fastseq.soft_dtw(x, y, gamma=0.5, bandwidth=2)
    assert fastseq.soft_dtw(x, y, gamma=np.float32(0.5), bandwidth=np.int64(2)) == want


def test_choice_of_backend(monkeypatch):
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    ready = dispatch.BackendStatus(True, "", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: ready)
    assert resolve_backend("auto", "cpu")[0] == "numba"
    assert resolve_backend("auto", "cuda")[0] == "cuda"
    name, reason = resolve_backend("auto", "xpu")
    assert name == "torch"
    assert "the tensors are on xpu" in reason
    for device in ("cpu", "cuda"):
        for name in ("torch", "reference"):
            assert resolve_backend(name, device)[0] == name
    with pytest.raises(RuntimeError, match=r"'numba'.*tensors are on cuda; to fix.*the CPU"):
        resolve_backend("numba", "cuda")
    missing = dispatch.BackendStatus(False, "not here", "pip install it")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: missing)
    for device in ("cpu", "cuda"):
        name, reason = resolve_backend("auto", device)
        assert name == "torch"
        assert "not here; to fix: pip install it" in reason
    with pytest.raises(RuntimeError, match="not here; to fix: pip install it"):
        resolve_backend("numba", "cpu")
    monkeypatch.setenv("FASTSEQ_BACKEND", "reference")
    assert resolve_backend("auto", "cpu") == ("reference", "FASTSEQ_BACKEND")
    assert resolve_backend("torch", "cpu")[0] == "torch"


def test_the_default_backend_of_all_ops_may_be_one_that_an_op_does_not_have(monkeypatch):
    why_not = {"cuda": "no GPU", "torch": None}
    monkeypatch.setenv("FASTSEQ_BACKEND", "triton")
    name, reason = choose_backend("some_op", "auto", why_not)
    assert name == "torch"
    assert "not triton (FASTSEQ_BACKEND): some_op has no such backend" in reason
    with pytest.raises(ValueError, match="unknown backend 'triton'"):
        choose_backend("some_op", "triton", why_not)
    monkeypatch.setenv("FASTSEQ_BACKEND", "cuda")  # a backend that it has does not fall back
    with pytest.raises(RuntimeError, match=r"'cuda' \(FASTSEQ_BACKEND\) does not support.*no GPU"):
        choose_backend("some_op", "auto", why_not)
    monkeypatch.setenv("FASTSEQ_BACKEND", "fast")  # a name that is no backend of any op is an error
    with pytest.raises(ValueError, match=r"unknown backend 'fast' \(FASTSEQ_BACKEND\)"):
        choose_backend("some_op", "auto", why_not)
    z = torch.eye(4)
    for other in ("cuda", "numba"):
        monkeypatch.setenv("FASTSEQ_BACKEND", other)
        assert fastseq.scl_loss(z, z).isfinite()


def test_the_slow_way_on_a_gpu_is_said_once(monkeypatch):
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    missing = dispatch.BackendStatus(False, "no extension", "build it")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: missing)
    op._warn_slow.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [op._resolve("soft_dtw", "auto", "cuda") for _ in range(2)] == ["torch"] * 2
        op._resolve("soft_dtw", "torch", "cuda")  # the backend was named, so there is no warning
        op._resolve("soft_dtw", "auto", "cpu")
    op._warn_slow.cache_clear()
    assert len(seen) == 1
    assert "slow on a GPU" in str(seen[0].message)
    assert "no extension; to fix: build it" in str(seen[0].message)


def test_function_transforms_need_the_reference():
    x, y = randn(2, 4, 3, seed=15), randn(2, 4, 3, seed=16)
    for call in (
        lambda **kw: torch.func.grad(lambda a: fastseq.soft_dtw(a, y, reduction="sum", **kw))(x),
        lambda **kw: torch.vmap(lambda a, b: fastseq.soft_dtw(a, b, **kw))(x, y),
        lambda **kw: torch.func.jvp(lambda a: fastseq.soft_dtw(a, y, **kw), (x,), (y,))[1],
    ):
        assert call(backend="reference").isfinite().all()
        with pytest.raises(RuntimeError, match=r'torch.func transforms.*backend="reference"'):
            call(backend="torch")


def test_meta_tensors_give_shapes():
    x = torch.zeros(2, 4, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    value = fastseq.soft_dtw(x, x, lengths_x=[4, 2], backend="reference")
    assert (value.device.type, value.shape, value.dtype) == ("meta", (2,), torch.float32)
    assert torch.autograd.grad(value.sum(), x)[0].shape == x.shape


def test_module_is_the_function():
    x, y = randn(2, 20, 3, seed=17), randn(2, 18, 3, seed=18)
    options = {"gamma": 0.2, "cost": "cosine", "bandwidth": 4, "divergence": True}
    module = fastseq.nn.SoftDTW(**options, reduction="mean", backend="reference")
    want = fastseq.soft_dtw(
        x, y, lengths_x=[20, 5], **options, reduction="mean", backend="reference"
    )
    assert torch.equal(module(x, y, lengths_x=[20, 5]), want)
    assert "gamma=0.2, cost='cosine', temperature=0.1, softmin='logsumexp', bandwidth=4" in repr(
        module
    )
    ends = {"begin": "free", "end": "free", "warp_penalty": 0.5}
    module = fastseq.nn.SoftDTW(gamma=torch.tensor(0.2), **ends, backend="reference")
    want = fastseq.soft_dtw(x, y, gamma=0.2, **ends, backend="reference")
    assert torch.allclose(module(x, y), want)
    assert "begin='free', end='free', warp_penalty=0.5" in repr(module)
    module.gamma.fill_(0.4)  # a schedule
    want = fastseq.soft_dtw(x, y, gamma=0.4, **ends, backend="reference")
    assert torch.allclose(module(x, y), want)
    for wrong in (
        *({"gamma": -1}, {"gamma": torch.ones(2)}, {"gamma": torch.ones(()).requires_grad_()}),
        *({"cost": "l1"}, {"bandwidth": -1}, {"reduction": "avg"}, {"begin": "open"}),
        *({"warp_penalty": -1}, {"end": "free", "divergence": True}),
    ):
        with pytest.raises(ValueError, match="SoftDTW"):
            fastseq.nn.SoftDTW(**wrong)
    with pytest.raises(TypeError, match="SoftDTW: bandwidth must be an integer or None, got list"):
        fastseq.nn.SoftDTW(bandwidth=[1, 2])
