"""scl_loss with its temperature or variance as a tensor: learned, scheduled, never read back from a
GPU.
"""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted, rounding

import fastseq
from fastseq.ops.common import launch
from fastseq.ops.scl import negatives as negatives_launcher
from fastseq.ops.scl import torch_problem
from fastseq.ops.scl import triton as launcher
from fastseq.ops.scl.op import FUSED
from fastseq.ops.scl.options import SCLOptions
from ops.scl.test_triton import DEVICE, EXPONENT, randn

# NumPy warns about infinities and NaN, which masked entries contain on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# The torch backend reads a tensor on the CPU; "unread" tests the path for a tensor on a GPU.
CPU = ["reference", "torch", "unread"]
BACKENDS = [*CPU, pytest.param("triton", marks=pytest.mark.interpreter)]
NEGATIVES = ["cross", "video", "batch"]


@pytest.fixture
def backend(request, monkeypatch):
    if request.param == "unread":
        monkeypatch.setattr(torch_problem, "_known", lambda x: x)
        return "torch"
    return request.param


def views(n=2, frames=(5, 7), channels=4, dtype=torch.float64):
    return [randn(n, t, channels, seed=t).to(DEVICE, dtype) for t in frames]


def learned(z1, z2, tau, **kwargs):
    """Loss, and gradients of both views and of the temperature."""
    leaves = [x.detach().requires_grad_() for x in (z1, z2, tau)]
    loss = fastseq.scl_loss(*leaves[:2], temperature=leaves[2], **kwargs)
    weights = torch.arange(1.0, loss.numel() + 1, device=loss.device).view(loss.shape)
    return loss, *torch.autograd.grad((loss * weights).sum(), leaves)


def check(z1, z2, tau, dtype=torch.float32, floor=EXPONENT, **kwargs):
    """Asserts that Triton is as accurate as the reference; the truth is the reference with a
    float.
    """
    truth = learned(z1, z2, tau, backend="reference", **kwargs)
    z1, z2 = z1.to(dtype), z2.to(dtype)
    got, plain = (
        learned(z1, z2, tau.float(), backend=b, **kwargs) for b in ("triton", "reference")
    )
    as_accurate_as(got[0], plain[0], truth[0])
    names = "dz1", "dz2", "dtemperature"
    as_accurate_as(got[1:], plain[1:], truth[1:], floor=floor, what=names)


@pytest.mark.parametrize("backend", CPU, indirect=True)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(backend, negatives, normalize):
    z1, z2 = (z.cpu().requires_grad_() for z in views(3, (3, 4), 3))
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    kwargs = {"lengths1": [3, 0, 2], "reduction": "none", "backend": backend}
    kwargs |= {"negatives": negatives, "normalize": normalize}

    def call(z1, z2, tau):
        return fastseq.scl_loss(z1, z2, temperature=tau, **kwargs)

    assert torch.autograd.gradcheck(call, (z1, z2, tau))
    if backend == "reference" and negatives == "video" and normalize:
        assert torch.autograd.gradgradcheck(call, (z1, z2, tau))


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_equals_the_float(backend, negatives):
    z1, z2 = views(3, dtype=torch.float32)
    kwargs = {"lengths2": [7, 2, 0], "negatives": negatives, "reduction": "paper"}
    tau, var = (torch.tensor(x, device=DEVICE) for x in (0.3, 4.0))
    got = learned(z1, z2, tau, variance=var, backend=backend, **kwargs)
    leaves = [z.double().requires_grad_() for z in (z1, z2)]
    want = fastseq.scl_loss(*leaves, temperature=tau.item(), variance=4.0, **kwargs)
    want = want, *torch.autograd.grad(want, leaves)
    for a, b in zip(got[:3], want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6)


@pytest.mark.interpreter
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_triton(negatives, normalize):
    """Two units of frames, one view longer than the other, padding."""
    z1, z2 = views(2, (66, 5), 17)
    kwargs = {"lengths1": [66, 3], "normalize": normalize, "negatives": negatives}
    check(z1, z2, torch.tensor(0.2, device=DEVICE).double(), **kwargs)


@pytest.mark.interpreter
@pytest.mark.parametrize(("negatives", "normalize"), [("cross", True), ("batch", False)])
def test_triton_in_chunks_of_channels(monkeypatch, negatives, normalize):
    """Each program processes a part of the channels; one of them also forms the sums of the
    rows.
    """
    small = launch.Tiles(16, 16, 16, 16, 4, 1)
    launch.clear()
    for module in (launcher, negatives_launcher):
        monkeypatch.setattr(module, "tiles", lambda *_: small)
    z1, z2 = views(2, (18, 5), 20)
    tau = torch.tensor(0.5, device=DEVICE).double()
    check(z1, z2, tau, normalize=normalize, negatives=negatives, variance=2.0)
    launch.clear()


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("negatives", ["cross", "video"])
def test_half(dtype, negatives):
    z1, z2 = (z.double() for z in views(2, (40, 33), 24, dtype))
    tau = torch.tensor(0.1, device=DEVICE).double()
    floor = interpreted(dtype, DEVICE) or rounding(dtype)
    check(z1, z2, tau, dtype, floor, negatives=negatives, reduction="sum")


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("needs", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("negatives", ["cross", "video"])
def test_only_some_are_learned(backend, needs, negatives):
    z1, z2 = views(dtype=torch.float32)
    tau = torch.tensor(0.2, device=DEVICE)
    every = learned(z1, z2, tau, backend=backend, negatives=negatives)[1:]
    tau = tau.double().requires_grad_()
    leaves = [z.clone().requires_grad_(bool(need)) for z, need in zip((z1, z2), needs, strict=True)]
    loss = fastseq.scl_loss(*leaves, temperature=tau, backend=backend, negatives=negatives)
    wanted = [z for z in (*leaves, tau) if z.requires_grad]
    got = torch.autograd.grad(loss, wanted)
    assert got[-1].dtype == torch.float64
    want = [g for g, need in zip(every, (*needs, 1), strict=True) if need]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(("n", "frames"), [(0, (3, 3)), (2, (0, 4)), (2, (0, 0))])
def test_nothing_to_compare(backend, n, frames):
    z1, z2 = views(n, frames, dtype=torch.float32)
    loss, *grads = learned(z1, z2, torch.tensor(0.1, device=DEVICE), backend=backend)
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("negatives", ["cross", "batch"])
def test_same_bits_each_time(backend, negatives):
    z1, z2 = views(2, (70, 5), 16, torch.float32)
    tau, kwargs = torch.tensor(0.1, device=DEVICE), {"negatives": negatives, "backend": backend}
    runs = [learned(z1, z2, tau, **kwargs) for _ in range(2)]
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["temperature", "variance"])
@pytest.mark.parametrize("negatives", ["cross", "video"])
def test_what_nobody_reads_is_nan_where_it_is_wrong(backend, value, name, negatives):
    """The path on a GPU and under torch.compile: the code after the checks of the public
    function.
    """
    z1, z2 = views(dtype=torch.float32)
    opts = SCLOptions(1.0, 1.0, True, "kl", negatives, "none")
    value = torch.tensor(value, device=DEVICE)
    scalars = (value, None) if name == "temperature" else (None, value)
    loss = FUSED(backend, opts, z1, z2, *scalars, *[None] * 4)
    assert loss.isnan().all()


@pytest.mark.parametrize("name", ["temperature", "variance"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (torch.tensor([0.1]), ValueError, r"shape \(\), got \(1,\); to fix: \w+.squeeze"),
        (torch.tensor(1), TypeError, "tensor of float64, .* got torch.int64"),
        (torch.tensor(-1.0), ValueError, "greater than 0, got -1.0"),
        (torch.ones((), device="meta"), ValueError, "on the CPU for embeddings on cpu, got meta"),
    ],
)
def test_wrong_tensors(name, value, error, text):
    z1, z2 = torch.randn(2, 2, 5, 4)
    with pytest.raises(error, match=f"^scl_loss: {name} .*" + text):
        fastseq.scl_loss(z1, z2, **{name: value})


def test_a_learned_variance_is_an_error():
    z1, z2 = torch.randn(2, 2, 5, 4)
    with pytest.raises(ValueError, match=r"variance requires a gradient.* variance.detach\(\)"):
        fastseq.scl_loss(z1, z2, variance=torch.ones((), requires_grad=True))


def test_a_temperature_on_the_cpu_follows_the_embeddings():
    z1, z2 = torch.randn(2, 2, 5, 4, device="meta")
    tau, var = torch.tensor(0.1, requires_grad=True), torch.tensor(10.0)
    assert fastseq.scl_loss(z1, z2, temperature=tau, variance=var).device.type == "meta"


def test_reference_under_transforms():
    z1, z2 = (z.cpu() for z in views())

    def loss(tau):
        return fastseq.scl_loss(z1, z2, temperature=tau, backend="reference")

    taus = torch.tensor([0.1, 0.3], dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(loss))(taus)
    want = [learned(z1, z2, tau)[3] for tau in taus]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.compile
@pytest.mark.parametrize("needs", [True, False])
def test_compiled_once_for_all_values(needs):
    """In one graph, and equal to eager."""
    from torch._dynamo.testing import CompileCounterWithBackend

    z1, z2 = (z.cpu() for z in views(dtype=torch.float32))
    counter = CompileCounterWithBackend("aot_eager")

    def step(z1, tau):
        return fastseq.scl_loss(z1, z2, temperature=tau * 1.0, variance=tau.detach() * 10)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for value in (0.1, 0.2, 0.05, 0.7):
        results = []
        for function in (step, compiled):
            leaf = z1.clone().requires_grad_()
            tau = torch.tensor(value, requires_grad=needs)
            loss = function(leaf, tau)
            results.append((loss, *torch.autograd.grad(loss, [leaf, tau][: 1 + needs])))
        assert all(map(torch.equal, *results))
    assert counter.frame_count == 1


@pytest.mark.compile
def test_opcheck():
    z1, z2 = (z.cpu() for z in views(dtype=torch.float32))
    tau, var = torch.tensor(0.1), torch.tensor(10.0)
    options = "torch", 1.0, 1.0, True, "kl", "video", "mean"
    options = *options, "gauss", [False, False, True]
    args = z1, z2, tau.requires_grad_(), var, *[None] * 4, *options
    torch.library.opcheck(FUSED.forward_op, args)
    args = z1, z2, tau.detach(), var, *[None] * 4
    loss, *kept = FUSED.forward_op(*args, *options)
    torch.library.opcheck(FUSED.backward_op, (torch.ones_like(loss), *args, *kept, *options))


def test_module_with_a_parameter_and_with_a_schedule():
    z1, z2 = (z.cpu() for z in views(dtype=torch.float32))
    module = fastseq.nn.SCLLoss(temperature=torch.nn.Parameter(torch.tensor(0.3)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(z1, z2).backward()
    assert torch.equal(module.temperature.grad, learned(z1, z2, torch.tensor(0.3))[3])
    module = fastseq.nn.SCLLoss(variance=torch.tensor(1.0), temperature=0.1)
    assert list(module.state_dict()) == ["variance"]
    assert repr(module).endswith("backend='auto', variance=(buffer))")
    with pytest.raises(TypeError, match="does not support item assignment"):
        module.options["temperature"] = 0.2
    module.variance.fill_(10.0)
    torch.testing.assert_close(module(z1, z2), fastseq.scl_loss(z1, z2))


def test_module_with_a_tensor_that_no_optimizer_finds():
    tau = torch.nn.Parameter(torch.tensor([0.1])).squeeze()
    with pytest.raises(
        ValueError, match=r"^SCLLoss: temperature .* is not an nn.Parameter.*to fix: "
    ):
        fastseq.nn.SCLLoss(temperature=tau)
    with pytest.raises(ValueError, match=r"^SCLLoss: variance .*to fix: variance.detach\(\)"):
        fastseq.nn.SCLLoss(variance=torch.nn.Parameter(torch.tensor(10.0)))
