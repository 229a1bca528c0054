"""VCLR's losses with their temperature as a tensor: learned, scheduled, never read back from a
GPU.
"""

import math

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from ops.vclr.test_values import INTRA, parts, randn

FORMS = ["paper", "code"]


def intra(n=4, d=6, dtype=torch.float64):
    return [randn(n, *s, seed=i).to(dtype) for i, s in enumerate(((d,), (d,), (3, d)))]


def learned(args, tau, **kwargs):
    """Loss, and gradients of the embeddings and of tau."""
    leaves = [z.detach().requires_grad_() for z in (*args, tau)]
    loss = fastseq.intra_nce(*leaves[:3], temperature=leaves[3], **kwargs)
    return loss, *torch.autograd.grad(loss.sum(), leaves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(form, normalize):
    tau = torch.tensor(0.7, dtype=torch.float64)

    def call(*args):
        kwargs = {"normalize": normalize, "form": form, "reduction": "none"}
        return fastseq.intra_nce(*args[:3], temperature=args[3], **kwargs)

    leaves = [z.requires_grad_() for z in (*intra(2, 3), tau)]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_float(form, dtype):
    """The dtype of the temperature determines that of its gradient, not that of the loss."""
    args = intra()
    tau = torch.tensor(0.3125, dtype=dtype)  # exact in all of them
    number = fastseq.intra_nce(*args, temperature=0.3125, form=form)
    loss, *_, slope = learned(args, tau, form=form)
    torch.testing.assert_close(loss.detach(), number, rtol=1e-12, atol=0)
    assert slope.dtype == dtype
    assert slope.shape == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(form, dtype):
    halves = intra(dtype=dtype)
    tau = torch.tensor(0.1)
    truth = learned([z.double() for z in halves], tau.double(), form=form)
    plain = learned([z.float() for z in halves], tau, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = learned(halves, tau, form=form)
    assert got[0].dtype == got[4].dtype == torch.float32
    as_accurate_as(got[::4], plain[::4], truth[::4], what=("loss", "dtemperature"))


def test_no_queries():
    loss, *grads = learned(intra(0), torch.tensor(0.1))
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize(
    ("tau", "error", "text"),
    [
        (torch.tensor([0.1]), ValueError, r"shape \(\), got \(1,\); to fix: temperature.squeeze"),
        (torch.tensor(1), TypeError, "tensor of float64, .* got torch.int64"),
        (torch.tensor(0.0), ValueError, "greater than 0, got 0.0"),
        (torch.tensor(-1.0, requires_grad=True), ValueError, "greater than 0, got -1.0"),
        (torch.tensor(math.nan), ValueError, "finite"),
    ],
)
def test_wrong_tensors(tau, error, text):
    with pytest.raises(error, match="^intra_nce: temperature .*" + text):
        fastseq.intra_nce(**INTRA, temperature=tau)
    # The error of the sum names the sum itself, whether or not the given parts have a temperature.
    for name, part in parts().items():
        with pytest.raises(error, match="^vclr_loss: temperature .*" + text):
            fastseq.vclr_loss(**{name: part}, temperature=tau)


def test_where_the_temperature_may_be():
    elsewhere = torch.ones((), device="meta")
    wrong = "temperature must be on the CPU for embeddings on cpu, got meta"
    with pytest.raises(ValueError, match=f"^intra_nce: {wrong}"):
        fastseq.intra_nce(**INTRA, temperature=elsewhere)
    for name in ("inter", "intra", "video"):
        with pytest.raises(ValueError, match=f"^vclr_loss: {name}: {wrong}"):
            fastseq.vclr_loss(**{name: parts()[name]}, temperature=elsewhere)
    away = [z.to("meta") for z in intra()]
    assert fastseq.intra_nce(*away, temperature=torch.tensor(0.1)).device.type == "meta"
    assert fastseq.vclr_loss(intra=tuple(away), temperature=elsewhere).device.type == "meta"


@pytest.mark.parametrize("form", FORMS)
def test_under_transforms(form):
    args = intra()

    def loss(tau):
        return fastseq.intra_nce(*args, temperature=tau, form=form)

    taus = torch.tensor([0.1, 0.3], dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(loss))(taus)
    want = [learned(args, tau, form=form)[4] for tau in taus]
    torch.testing.assert_close(got, torch.stack(want))


def gradient(function, tau):
    leaf = tau.clone().requires_grad_()
    loss = function(leaf)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("form", FORMS)
def test_the_sum_learns_from_its_parts(form):
    given, tau = parts(), torch.tensor(0.3, dtype=torch.float64)
    weights = (0.5, 2, 3, 1)
    terms = [
        gradient(lambda t: fastseq.queue_nce(*given["inter"], temperature=t), tau),
        gradient(lambda t: fastseq.intra_nce(*given["intra"], temperature=t, form=form), tau),
        gradient(lambda t: fastseq.queue_nce(*given["video"], temperature=t), tau),
    ]
    order = fastseq.temporal_order_loss(*given["order"], form=form).detach()

    def total(tau):
        return fastseq.vclr_loss(**given, weights=weights, temperature=tau, form=form)

    value, slope = gradient(total, tau)
    weighted = [(w * value, w * slope) for w, (value, slope) in zip(weights, terms, strict=False)]
    values, slopes = map(sum, zip(*weighted, strict=True))
    torch.testing.assert_close(value, values + order)
    torch.testing.assert_close(slope, slopes)
    assert all(term[1].abs() > 1e-3 for term in terms)
    torch.testing.assert_close(value, total(0.3).detach())


def steps():
    """By name: intra_nce in both forms and the sum of all, as functions of an embedding and a
    temperature.
    """
    given = parts()
    q, *others = given["intra"]
    whole = given | {"inter": tuple(z.detach() for z in given["inter"])}

    def sum_of_four(q, tau):
        return fastseq.vclr_loss(**(whole | {"intra": (q, *others)}), temperature=tau)

    def paper(q, tau):
        return fastseq.intra_nce(q, *others, temperature=tau)

    def code(q, tau):
        return fastseq.intra_nce(q, *others, temperature=tau, form="code")

    return q, {"paper": paper, "code": code, "vclr_loss": sum_of_four}


@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "needs"),
    [("paper", True), ("code", True), ("vclr_loss", True), ("vclr_loss", False)],
)
def test_compiled_once_for_all_values(name, needs):
    """In one graph, and equal to eager; wrong values are NaN."""
    from torch._dynamo.testing import CompileCounterWithBackend

    q, functions = steps()
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(functions[name], fullgraph=True, backend=counter)
    for value in (0.1, 0.2, 0.05, 0.7):
        results = []
        for function in (functions[name], compiled):
            leaf = q.clone().requires_grad_()
            tau = torch.tensor(value, requires_grad=needs)
            loss = function(leaf, tau)
            results.append((loss, *torch.autograd.grad(loss, [leaf, tau][: 1 + needs])))
        assert all(map(torch.equal, *results))
    for value in (0.0, -0.1, math.nan):
        tau = torch.tensor(value, requires_grad=needs)
        assert compiled(q.clone().requires_grad_(), tau).isnan()
    assert counter.frame_count == 1


def test_module_with_a_parameter_and_with_a_schedule():
    given, tau = parts(), torch.tensor(0.3)
    module = fastseq.nn.VCLRLoss(temperature=torch.nn.Parameter(tau.clone()))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(**given).backward()
    want = gradient(lambda t: fastseq.vclr_loss(**given, temperature=t), tau)[1]
    assert torch.equal(module.temperature.grad, want)
    scheduled = tau.clone()
    module = fastseq.nn.VCLRLoss(temperature=scheduled)
    assert not list(module.parameters())
    assert list(module.state_dict()) == ["temperature"]
    scheduled.fill_(0.125)
    want = fastseq.vclr_loss(**given, temperature=0.125)
    torch.testing.assert_close(module(**given), want)
    assert module.state_dict()["temperature"] == 0.125
    with pytest.raises(ValueError, match=r"^VCLRLoss: temperature .* greater than 0"):
        fastseq.nn.VCLRLoss(temperature=torch.tensor(-1.0))
