"""queue_nce with its temperature as a tensor: learned, scheduled, never read back from a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted, rounding

import fastseq
from fastseq.ops.queue_nce.op import FUSED
from fastseq.ops.queue_nce.options import QueueNCEOptions
from ops.queue_nce.cases import inputs, loss_and_grads

# NumPy warns about infinities and NaN, which masked entries contain on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BACKENDS = ["reference", "torch", pytest.param("triton", marks=pytest.mark.interpreter)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def learned(q, positives, queue, tau, **kwargs):
    """Loss, and gradients of q, positives and tau."""
    leaves = [z.detach().requires_grad_() for z in (q, positives, tau)]
    loss = fastseq.queue_nce(*leaves[:2], queue, temperature=leaves[2], **kwargs)
    weights = torch.arange(1.0, loss.numel() + 1, device=loss.device).view(loss.shape)
    return loss, *torch.autograd.grad((loss * weights).sum(), leaves)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(backend, normalize, reduction):
    q, positives, queue = inputs(3, 2, 7, 4)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def call(q, positives, tau):
        kwargs = {"normalize": normalize, "reduction": reduction, "backend": backend}
        return fastseq.queue_nce(q, positives, queue, temperature=tau, **kwargs)

    assert torch.autograd.gradcheck(call, (q.requires_grad_(), positives.requires_grad_(), tau))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, (q, positives, tau))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_the_float_and_its_difference(backend, normalize, reduction):
    q, positives, queue = (z.to(DEVICE) for z in inputs(9, 2, 300, 16))
    kwargs = {"normalize": normalize, "reduction": reduction}
    tau = torch.tensor(0.3, device=DEVICE)
    truth = learned(q, positives, queue, tau.double(), **kwargs)
    plain, got = (
        learned(
            *(z.float() for z in (q, positives, queue)),
            tau,
            backend=name,
            **kwargs,
        )
        for name in ("reference", backend)
    )
    as_accurate_as(got[0], plain[0], truth[0])
    as_accurate_as(got[1:], plain[1:], truth[1:], what=("dq", "dpositives", "dtemperature"))
    number = fastseq.queue_nce(q, positives, queue, temperature=tau.item(), **kwargs)
    torch.testing.assert_close(truth[0].detach(), number, rtol=1e-12, atol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(dtype):
    args = [z.to(DEVICE) for z in inputs(17, 2, 700, 24, dtype=dtype)]
    tau = torch.tensor(0.1, device=DEVICE)
    truth = learned(*(z.double() for z in args), tau.double(), reduction="sum")[3]
    got, plain = (
        learned(*args, tau, reduction="sum", backend=name)[3] for name in ("triton", "reference")
    )
    # It is computed from the queue's mean, whose probabilities have the dtype of q.
    floor = interpreted(dtype, DEVICE) or rounding(dtype)
    as_accurate_as(got, plain, truth, floor=floor, what=("dtemperature",))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_temperature_is_learned(backend):
    q, positives, queue = (z.to(DEVICE) for z in inputs(9, 2, 300, 16, dtype=torch.float32))
    tau = torch.tensor(0.2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    loss = fastseq.queue_nce(q, positives, queue, temperature=tau, backend=backend)
    (slope,) = torch.autograd.grad(loss, tau)
    assert slope.dtype == torch.float64
    assert slope.shape == ()
    step = 1e-4
    truth = [
        fastseq.queue_nce(*(z.double() for z in (q, positives, queue)), temperature=t)
        for t in (0.2 - step, 0.2 + step)
    ]
    assert slope.item() == pytest.approx((truth[1] - truth[0]).item() / (2 * step), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 1, 5, 4), (3, 1, 0, 4)])
def test_nothing_to_compare(backend, shape):
    args = (z.to(DEVICE) for z in inputs(*shape, dtype=torch.float32))
    loss, *grads = learned(*args, torch.tensor(0.1, device=DEVICE), backend=backend)
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_each_time(backend):
    args = [z.to(DEVICE) for z in inputs(70, 2, 600, 16, dtype=torch.float32)]
    runs = [learned(*args, torch.tensor(0.1, device=DEVICE), backend=backend) for _ in range(3)]
    for again in runs[1:]:
        assert all(map(torch.equal, again, runs[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_what_nobody_reads_is_nan_where_it_is_wrong(backend, value):
    """The path on a GPU and under torch.compile: the code after the checks of the public
    function.
    """
    q, positives, queue = (z.to(DEVICE) for z in inputs(3, 1, 9, 4, dtype=torch.float32))
    opts = QueueNCEOptions(1.0, True, "none")
    loss = FUSED(backend, opts, q, positives, torch.tensor(value, device=DEVICE), queue)
    assert loss.isnan().all()


@pytest.mark.parametrize(
    ("tau", "error", "text"),
    [
        (torch.tensor([0.1]), ValueError, r"shape \(\), got \(1,\); to fix: temperature.squeeze"),
        (torch.ones(2), ValueError, r"shape \(\), got \(2,\)$"),
        (torch.tensor(1), TypeError, "tensor of float64, .* got torch.int64"),
        (torch.tensor(0.0), ValueError, "greater than 0, got 0.0"),
        (torch.tensor(-1.0, requires_grad=True), ValueError, "greater than 0, got -1.0"),
        (torch.tensor(math.nan), ValueError, "finite"),
        (torch.ones((), device="meta"), ValueError, "on the CPU for embeddings on cpu, got meta"),
    ],
)
def test_wrong_tensors(tau, error, text):
    q, positives, queue = inputs(3, 1, 9, 4)
    with pytest.raises(error, match="^queue_nce: temperature .*" + text):
        fastseq.queue_nce(q, positives, queue, temperature=tau)


def test_a_temperature_on_the_cpu_follows_the_embeddings():
    q, positives, queue = (z.to("meta") for z in inputs(3, 1, 9, 4))
    tau = torch.tensor(0.1, requires_grad=True)
    assert fastseq.queue_nce(q, positives, queue, temperature=tau).device.type == "meta"
    with pytest.raises(ValueError, match=r"greater than 0, got -0\.1"):
        fastseq.queue_nce(q, positives, queue, temperature=-tau)


def test_reference_under_transforms():
    q, positives, queue = inputs(3, 1, 9, 4)

    def loss(tau):
        return fastseq.queue_nce(q, positives, queue, temperature=tau, backend="reference")

    taus = torch.tensor([0.1, 0.3], dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(loss))(taus)
    want = [learned(q, positives, queue, tau)[3] for tau in taus]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.compile
@pytest.mark.parametrize("needs", [True, False])
def test_compiled_once_for_all_values(needs):
    """In one graph, and equal to eager."""
    from torch._dynamo.testing import CompileCounterWithBackend

    q, positives, queue = inputs(6, 2, 60, 8, dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    def step(q, tau):
        return fastseq.queue_nce(q, positives, queue, temperature=tau * 1.0)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for value in (0.1, 0.2, 0.05, 0.7):
        results = []
        for function in (step, compiled):
            leaf = q.clone().requires_grad_()
            tau = torch.tensor(value, requires_grad=needs)
            loss = function(leaf, tau)
            results.append((loss, *torch.autograd.grad(loss, [leaf, tau][: 1 + needs])))
        assert all(map(torch.equal, *results))
    assert counter.frame_count == 1


@pytest.mark.compile
def test_opcheck():
    q, positives, queue = inputs(4, 2, 9, 5, dtype=torch.float32)
    tau = torch.tensor(0.1, requires_grad=True)
    options = "torch", 1.0, True, "mean", [False, False, True]
    torch.library.opcheck(FUSED.forward_op, (q, positives, tau, queue, *options))
    tau = tau.detach()
    loss, lack, mean = FUSED.forward_op(q, positives, tau, queue, *options)
    args = torch.ones_like(loss), q, positives, tau, lack, mean, *options
    torch.library.opcheck(FUSED.backward_op, args)


def test_module_with_a_parameter_and_with_a_schedule():
    q, positives, queue = inputs(3, 1, 9, 4, dtype=torch.float32)
    module = fastseq.nn.QueueNCE(temperature=torch.nn.Parameter(torch.tensor(0.3)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(q, positives, queue).backward()
    want = learned(q, positives, queue, torch.tensor(0.3))[3]
    assert torch.equal(module.temperature.grad, want)
    scheduled = torch.tensor(0.3)
    module = fastseq.nn.QueueNCE(temperature=scheduled)
    assert list(module.state_dict()) == ["temperature"]
    scheduled.fill_(0.1)
    default = loss_and_grads(q, positives, queue)[0]
    torch.testing.assert_close(module(q, positives, queue), default.detach())
    with pytest.raises(ValueError, match=r"^QueueNCE: temperature .* greater than 0"):
        fastseq.nn.QueueNCE(temperature=torch.tensor(-1.0))
