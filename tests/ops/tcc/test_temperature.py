"""tcc_loss with its temperature as a tensor: learned, scheduled, never read back from a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, rounding

import fastseq
from fastseq.ops.tcc.op import FUSED
from fastseq.ops.tcc.options import LOSS_TYPES, REDUCTIONS, SIMILARITIES, TCCOptions
from ops.tcc.cases import randn

# NumPy warns about infinities and NaN, which masked entries contain on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BACKENDS = ["reference", "torch", pytest.param("triton", marks=pytest.mark.interpreter)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Each loss type with and without y, over the reductions; "none" without y keeps no gradients.
KINDS = [
    *zip(LOSS_TYPES, REDUCTIONS * 2, [True] * 4, SIMILARITIES * 2, strict=False),
    *zip(LOSS_TYPES, REDUCTIONS[1:] + REDUCTIONS, [False] * 4, SIMILARITIES * 2, strict=False),
    ("regression_mse_var", "none", False, "l2"),
]
kinds = pytest.mark.parametrize(("loss_type", "reduction", "pairs", "similarity"), KINDS)


def learned(x, y, tau, **kwargs):
    """Loss, and gradients of x, of y if there is one, and of tau."""
    leaves = [None if z is None else z.detach().requires_grad_() for z in (x, y, tau)]
    loss = fastseq.tcc_loss(*leaves[:2], temperature=leaves[2], **kwargs)
    weights = torch.arange(1.0, loss.numel() + 1, device=loss.device).view(loss.shape)
    given = [z for z in leaves if z is not None]
    return loss, *torch.autograd.grad((loss * weights).sum(), given)


def inputs(n=2, frames=9, channels=6, pairs=True, dtype=torch.float64):
    # Seeds for which no gradient of the temperature is a small difference of large numbers.
    x, y = (randn(n, frames + k, channels, dtype=dtype, seed=11 + k).to(DEVICE) for k in (0, 2))
    return x, y if pairs else None


@pytest.mark.parametrize("backend", BACKENDS[:2])
@kinds
def test_gradcheck(backend, loss_type, reduction, pairs, similarity):
    x, y = inputs(2 if pairs else 3, 3, 2, pairs)
    tau = torch.tensor(0.7, dtype=torch.float64, device=DEVICE)
    leaves = [z.requires_grad_() for z in (tau, x, y) if z is not None]
    kwargs = {"loss_type": loss_type, "similarity": similarity, "reduction": reduction}

    def call(tau, *sides):
        return fastseq.tcc_loss(*sides, temperature=tau, backend=backend, **kwargs)

    assert torch.autograd.gradcheck(call, leaves)
    if backend == "reference" and reduction == "mean" and loss_type != "classification":
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@kinds
def test_equals_the_float_and_its_difference(backend, loss_type, reduction, pairs, similarity):
    """Padding contains NaN."""
    x, y = inputs(2 if pairs else 3, pairs=pairs)
    kwargs = {"loss_type": loss_type, "similarity": similarity, "reduction": reduction}
    kwargs |= {"lengths_x": [9, 5], "lengths_y": [11, 8]} if pairs else {"lengths_x": [9, 5, 0]}
    x[1, 5:] = math.nan
    tau = torch.tensor(0.6, device=DEVICE)
    truth = learned(x, y, tau.double(), **kwargs)
    single = x.float(), None if y is None else y.float()
    plain, got = (learned(*single, tau, backend=name, **kwargs) for name in ("reference", backend))
    as_accurate_as(got[0], plain[0], truth[0])
    what = ("dx", "dy", "dtemperature") if pairs else ("dx", "dtemperature")
    as_accurate_as(got[1:], plain[1:], truth[1:], what=what)
    assert (got[1][1, 5:] == 0).all()
    number = fastseq.tcc_loss(x, y, temperature=tau.item(), **kwargs)
    torch.testing.assert_close(truth[0].detach(), number, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("pairs", [True, False])
def test_far_from_the_origin(backend, pairs):
    """The part that all frames share is subtracted before anything is multiplied."""
    x, y = inputs(1 if pairs else 2, 30, 16, pairs)
    x, y = (None if z is None else (z + 100).float() for z in (x, y))
    tau = torch.tensor(0.5, device=DEVICE)
    exact = (None if z is None else z.double() for z in (x, y))
    truth = learned(*exact, tau.double())[-1]
    got = learned(x, y, tau, backend=backend)[-1]
    as_accurate_as(got, truth, truth, floor=1e-5, what=("dtemperature",))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(
    ("dtype", "pairs"), [(torch.float16, True), (torch.bfloat16, True), (torch.bfloat16, False)]
)
def test_half(backend, dtype, pairs):
    x, y = inputs(1 if pairs else 2, 20, 24, pairs)
    x, y = (None if z is None else (z / 2).to(dtype) for z in (x, y))
    tau = torch.tensor(0.3, device=DEVICE)
    exact = (None if z is None else z.double() for z in (x, y))
    truth = learned(*exact, tau.double())[-1]
    got, plain = (learned(x, y, tau, backend=name)[-1] for name in (backend, "reference"))
    # In the kernels, numbers computed from halves have 16 bits.
    floor = rounding(torch.float16) if backend == "triton" else None
    as_accurate_as(got, plain, truth, floor=floor, what=("dtemperature",))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_temperature_is_learned(backend):
    x, y = inputs(dtype=torch.float32)
    tau = torch.tensor(0.4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    loss = fastseq.tcc_loss(x, y, temperature=tau, backend=backend)
    (slope,) = torch.autograd.grad(loss, tau)
    assert slope.dtype == torch.float64
    assert slope.shape == ()
    step = 1e-4
    truth = [
        fastseq.tcc_loss(x.double(), y.double(), temperature=t) for t in (0.4 - step, 0.4 + step)
    ]
    assert slope.item() == pytest.approx((truth[1] - truth[0]).item() / (2 * step), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_compare(backend, reduction):
    for n, frames, pairs, lengths in (
        (0, 4, True, {}),
        (1, 4, False, {}),
        (2, 0, False, {}),
        (2, 4, True, {"lengths_x": [0, 4], "lengths_y": [3, 0]}),
    ):
        x, y = inputs(n, frames, 3, pairs, torch.float32)
        tau = torch.tensor(0.1, device=DEVICE)
        loss, *grads = learned(x, y, tau, backend=backend, reduction=reduction, **lengths)
        assert (loss == 0).all()
        assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_each_time(backend):
    x, y = inputs(1, 20, 16, dtype=torch.float32)
    runs = [learned(x, y, torch.tensor(0.1, device=DEVICE), backend=backend) for _ in range(2)]
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_what_nobody_reads_is_nan_where_it_is_wrong(backend, value):
    """The path on a GPU and under torch.compile: the code after the checks of the public
    function.
    """
    x, y = inputs(dtype=torch.float32)
    tau = torch.tensor(value, device=DEVICE)
    lengths = torch.tensor([9, 5], device=DEVICE)
    opts = TCCOptions.checked("", "regression_mse_var", "l2", 1, 0.001, 0.1, 0.1, True, "none")
    loss = FUSED(backend, opts, x, y, tau, None, None, lengths, None, None, None)
    assert loss.isnan().all()


@pytest.mark.parametrize(
    ("tau", "error", "text"),
    [
        (torch.tensor([0.1]), ValueError, r"shape \(\), got \(1,\); to fix: temperature.squeeze"),
        (torch.tensor(1), TypeError, "tensor of float64, .* got torch.int64"),
        (torch.tensor(-1.0, requires_grad=True), ValueError, "greater than 0, got -1.0"),
        (torch.tensor(math.nan), ValueError, "finite"),
        (torch.ones((), device="meta"), ValueError, "on the CPU for embeddings on cpu, got meta"),
    ],
)
def test_wrong_tensors(tau, error, text):
    with pytest.raises(error, match="^tcc_loss: temperature .*" + text):
        fastseq.tcc_loss(randn(2, 4, 3), temperature=tau)


def test_a_temperature_on_the_cpu_follows_the_embeddings():
    x = randn(2, 4, 3).to("meta")
    tau = torch.tensor(0.1, requires_grad=True)
    assert fastseq.tcc_loss(x, temperature=tau).device.type == "meta"


def test_reference_under_transforms():
    x, y = inputs()

    def loss(tau):
        return fastseq.tcc_loss(x, y, temperature=tau, backend="reference")

    taus = torch.tensor([0.1, 0.3], dtype=torch.float64, device=DEVICE)
    got = torch.func.vmap(torch.func.grad(loss))(taus)
    want = [learned(x, y, tau)[-1] for tau in taus]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.compile
@pytest.mark.parametrize("needs", [True, False])
def test_compiled_once_for_all_values(needs):
    """In one graph, and equal to eager."""
    from torch._dynamo.testing import CompileCounterWithBackend

    x, y = inputs(dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, tau):
        return fastseq.tcc_loss(x, y, temperature=tau * 1.0)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for value in (0.1, 0.2, 0.05, 0.7):
        results = []
        for function in (step, compiled):
            leaf = x.clone().requires_grad_()
            tau = torch.tensor(value, requires_grad=needs)
            loss = function(leaf, tau)
            results.append((loss, *torch.autograd.grad(loss, [leaf, tau][: 1 + needs])))
        assert all(map(torch.equal, *results))
    assert counter.frame_count == 1


@pytest.mark.compile
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction):
    """Without y, so that "none" keeps nothing."""
    x, _ = inputs(dtype=torch.float32)
    tau = torch.tensor(0.1, device=DEVICE, requires_grad=True)
    tensors = x, None, tau, *[None] * 6
    options = "torch", "regression_mse_var", "l2", 1.0, 0.001, 0.1, 0.1, True, reduction
    options = *options, [False, False, True]
    torch.library.opcheck(FUSED.forward_op, (*tensors, *options))
    tau.requires_grad_(False)
    loss, dx, _ = FUSED.forward_op(*tensors, *options)
    kept = dx if dx.numel() else None
    assert (kept is None) == (reduction == "none")
    args = torch.ones_like(loss), *tensors, kept, None, *options
    torch.library.opcheck(FUSED.backward_op, args)


def test_module_with_a_parameter_and_with_a_schedule():
    x, y = inputs(dtype=torch.float32)
    module = fastseq.nn.TCCLoss(temperature=torch.nn.Parameter(torch.tensor(0.3))).to(DEVICE)
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(x, y).backward()
    want = learned(x, y, torch.tensor(0.3, device=DEVICE))[-1]
    assert torch.equal(module.temperature.grad, want)
    scheduled = torch.tensor(0.3)
    module = fastseq.nn.TCCLoss(temperature=scheduled)
    assert list(module.state_dict()) == ["temperature"]
    scheduled.fill_(0.1)
    torch.testing.assert_close(module(x, y), fastseq.tcc_loss(x, y))
    with pytest.raises(ValueError, match=r"^TCCLoss: temperature .* greater than 0"):
        fastseq.nn.TCCLoss(temperature=torch.tensor(-1.0))
