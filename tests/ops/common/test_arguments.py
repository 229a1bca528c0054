"""Behaviour that all public ops share: they accept numbers of any kind, errors name the function
that was called, and the other ways of PyTorch to differentiate raise one clear error.
"""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.nn.functional import normalize

import fastseq
from fastseq.compat.lav import LAV
from fastseq.compat.softdtw import SoftDTW
from ops.soft_dtw.cases import randn

X, Y = randn(3, 12, 4, seed=1), randn(3, 12, 4, seed=2)
COST = randn(3, 12, 12, seed=3).square()
QUEUE = normalize(randn(20, 4, seed=4), dim=-1)
CLASSIFIER = torch.nn.Linear(2 * 3 * 4, 4)

# One call of each op, as a function of its first tensor.
OPS = {
    "scl_loss": lambda x, **kw: fastseq.scl_loss(x, Y, **kw),
    "soft_dtw": lambda x, **kw: fastseq.soft_dtw(x, Y, **{"reduction": "sum"} | kw),
    "soft_dtw_from_cost": lambda x, **kw: fastseq.soft_dtw_from_cost(
        x @ Y.mT, **{"reduction": "sum"} | kw
    ),
    "soft_dtw_alignment": lambda x, **kw: fastseq.soft_dtw_alignment(x, Y, **kw)[0, 3, 4],
    "contrastive_idm": lambda x, **kw: fastseq.contrastive_idm(x, **kw),
    "lav_loss": lambda x, **kw: fastseq.lav_loss(x, Y, **kw),
    "gta_loss": lambda x, **kw: fastseq.gta_loss(x, Y, **kw),
    "ae2_loss": lambda x, **kw: fastseq.ae2_loss(x, Y, **kw),
    "sinkhorn_alignment": lambda x, **kw: fastseq.sinkhorn_alignment(
        x, Y, **{"reduction": "sum"} | kw
    ),
    "vava_loss": lambda x, **kw: fastseq.vava_loss(x, Y, **kw),
    "tcc_loss": lambda x, **kw: fastseq.tcc_loss(x, Y, **kw),
    "tcn_loss": lambda x, **kw: fastseq.tcn_loss(x, Y, **kw),
    "queue_nce": lambda x, **kw: fastseq.queue_nce(x[:, 0], Y[:, 1:4], QUEUE, **kw),
    "intra_nce": lambda x, **kw: fastseq.intra_nce(x[:, 0], Y[:, 0], Y[:, 1:4], **kw),
    "vclr_loss": lambda x, **kw: fastseq.vclr_loss(inter=(x[:, 0], Y[:, 1], QUEUE), **kw),
}
FUSED = [op for op in OPS if op not in ("tcn_loss", "intra_nce")]

NUMBERS = [
    ("scl_loss", "variance", 9),
    ("scl_loss", "temperature", 1),
    ("soft_dtw", "gamma", 2),
    ("soft_dtw", "bandwidth", 3),
    ("soft_dtw_from_cost", "gamma", 2),
    ("soft_dtw_from_cost", "bandwidth", 3),
    ("soft_dtw_alignment", "gamma", 2),
    ("soft_dtw_alignment", "bandwidth", 3),
    ("contrastive_idm", "window", 3),
    ("contrastive_idm", "margin", 3),
    ("lav_loss", "gamma", 2),
    ("lav_loss", "alpha", 2),
    ("lav_loss", "window", 3),
    ("lav_loss", "margin", 3),
    ("gta_loss", "gamma", 2),
    ("gta_loss", "temperature", 1),
    ("ae2_loss", "gamma", 2),
    ("ae2_loss", "temperature", 1),
    ("ae2_loss", "ratio", 2),
    ("sinkhorn_alignment", "epsilon", 2),
    ("vava_loss", "margin", 3),
    ("tcc_loss", "temperature", 1),
    ("tcc_loss", "variance_lambda", 1),
    ("tcc_loss", "label_smoothing", 0),
    ("tcc_loss", "huber_delta", 1),
    ("tcc_loss", "duration_x", 24),
    ("tcn_loss", "reg_lambda", 1),
    ("queue_nce", "temperature", 1),
    ("intra_nce", "temperature", 1),
    ("vclr_loss", "temperature", 1),
]


@pytest.mark.parametrize(("op", "name", "number"), NUMBERS)
def test_numbers_of_numpy_are_numbers(op, name, number):
    want = OPS[op](X, **{name: number})
    kinds = [np.int64, np.int8, np.uint16]
    if name != "bandwidth":
        kinds += [np.float32, np.float64, Fraction]
    for kind in kinds:
        assert torch.equal(OPS[op](X, **{name: kind(number)}), want)
    for wrong in (np.True_, "3", 1j):
        with pytest.raises(TypeError, match=rf"^{op}: {name} must be"):
            OPS[op](X, **{name: wrong})


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("scl_loss", "lengths1"),
        ("soft_dtw", "lengths_x"),
        ("soft_dtw_from_cost", "lengths_y"),
        ("soft_dtw_alignment", "lengths_x"),
        ("contrastive_idm", "lengths"),
        ("lav_loss", "lengths_y"),
        ("ae2_loss", "lengths_y"),
        ("sinkhorn_alignment", "lengths_x"),
        ("vava_loss", "lengths_x"),
        ("tcc_loss", "lengths_x"),
    ],
)
def test_lengths_of_every_integer_type(op, name):
    numbers = [12, 7, 5]
    want = OPS[op](X, **{name: numbers})
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        array = np.array(numbers, kind)
        given = (array, torch.from_numpy(array), list(array), tuple(array))
        for lengths in given:
            assert torch.equal(OPS[op](X, **{name: lengths}), want)
    for wrong in ([True] * 3, [12.0, 7.0, 5.0], torch.ones(3), np.ones(3), np.ones(3, bool)):
        with pytest.raises(TypeError, match=rf"^{op}: {name} must be integers"):
            OPS[op](X, **{name: wrong})


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_every_integer_type(kind):
    labels = torch.tensor([0, 3, 2])
    q, k = X[:, :3], Y[:, :3]
    want = fastseq.temporal_order_loss(q, k, labels, CLASSIFIER)
    assert torch.equal(fastseq.temporal_order_loss(q, k, labels.to(kind), CLASSIFIER), want)


def _tangent_forward(call):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(X, Y))).tangent


TRANSFORMS = {
    "grad": lambda call: (torch.func.grad(call)(X) * Y).sum(),
    "jacrev": lambda call: (torch.func.jacrev(call)(X) * Y).sum(),
    "jvp": lambda call: torch.func.jvp(call, (X,), (Y,))[1],
    "forward_ad": _tangent_forward,
    "vmap": lambda call: torch.func.vmap(call)(torch.stack([X, X])).diff().squeeze(),
}


@pytest.mark.sweep
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_other_ways_to_differentiate_work_or_are_one_sentence(op, transform):
    run = TRANSFORMS[transform]
    if op in FUSED:
        sentence = (
            rf"^{op}: .*(torch.func transforms|forward-mode).*to fix: {op}"
            r"\(\.\.\., backend=\"reference\"\)$"
        )
        with pytest.raises(RuntimeError, match=sentence) as caught:
            run(OPS[op])
        assert str(caught.value).count(";") == 1
    if op == "soft_dtw_alignment":
        return  # the derivative of the definition is itself a gradient
    options = {"backend": "reference"} if op in FUSED else {}
    got = run(lambda x: OPS[op](x, **options))
    at = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(OPS[op](at, **options), at)
    want = torch.zeros(()) if transform == "vmap" else (gradient * Y).sum()
    assert torch.allclose(got.to(want.dtype), want, rtol=1e-4, atol=1e-5)


def test_a_path_cannot_be_differentiated():
    with pytest.raises(RuntimeError, match=r"^dtw_path: a path has no derivative"):
        torch.func.grad(lambda x: fastseq.dtw_path(x, Y[0])[1])(X[0])


# The alternative that an error recommends, as it is printed.
LEARNED = {
    ("soft_dtw", "gamma"): {"x": X, "y": Y},
    ("soft_dtw_from_cost", "gamma"): {"cost": COST},
}


@pytest.mark.parametrize(("op", "name"), LEARNED)
def test_the_way_to_learn_a_number_is_right(op, name):
    """Runs the code that the TypeError prints and compares with a central difference in float64."""
    tensors = {key: t.double() for key, t in LEARNED[op, name].items()}
    function = getattr(fastseq, op)
    number = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(TypeError, match=rf"^{op}: {name} .*{name}\.detach\(\)") as caught:
        function(**tensors, **{name: number})
    way = re.search(r"to learn it: (.*?\))(, where|, of|\))", str(caught.value))[1]
    assert op in way
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    known = tensors | {op: function, "tau": tau, "gamma": tau}
    learned = eval(way, {"normalize": lambda z: normalize(z, dim=-1)} | known).sum()
    value = [function(**tensors, **{name: 0.3 + step}).sum() for step in (-1e-5, 0, 1e-5)]
    assert learned.item() == pytest.approx(value[1].item(), rel=1e-9)
    (slope,) = torch.autograd.grad(learned, tau)
    assert slope.item() == pytest.approx((value[2] - value[0]).item() / 2e-5, rel=1e-5)
    assert slope.abs() > 1e-4


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fastseq.lav_loss(X, Y, backend="numba"), ValueError, "^lav_loss: unknown"),
        (lambda: fastseq.lav_loss(X, Y, gamma=0), ValueError, "^lav_loss: gamma"),
        (
            lambda: fastseq.vclr_loss(inter=(X[0], Y[0], X)),
            ValueError,
            "^vclr_loss: inter: queue must have shape",
        ),
        (
            lambda: fastseq.vclr_loss(intra=(X[0], Y[0], X[0])),
            ValueError,
            "^vclr_loss: intra: negatives must have shape",
        ),
        (
            lambda: fastseq.vclr_loss(order=(X[:, :3], Y[:, :3], [1], CLASSIFIER)),
            TypeError,
            "^vclr_loss: order: labels must be",
        ),
        (
            lambda: fastseq.vclr_loss(video=(X[0], Y[0], X[0]), backend="numba"),
            ValueError,
            "^vclr_loss: video: unknown backend",
        ),
        (
            lambda: fastseq.vclr_loss(video=(X[0], Y[0], X[0]), weights=2),
            TypeError,
            "^vclr_loss: weights must be 4 numbers, got 2",
        ),
        (
            lambda: fastseq.vclr_loss(video=(X[0], Y[0], X[0]), temperature=torch.tensor([0.1])),
            ValueError,
            r"^vclr_loss: temperature must be .* of shape \(\), got \(1,\)",
        ),
        (
            lambda: fastseq.vclr_loss(
                video=(X[0], Y[0], X[0]), temperature=torch.ones((), device="meta")
            ),
            ValueError,
            "^vclr_loss: video: temperature must be on the CPU for embeddings on cpu, got meta",
        ),
        (
            lambda: LAV(0.5, 10, 2.0, 20, 0.1, False)(X, Y, X[0, :5, 0], X[0, :, 0], 9, 9),
            ValueError,
            "^LAV: t must have shape",
        ),
        (
            lambda: LAV(0.5, 10, 2.0, 20, 0.1, False, backend="cuda")(X, Y, X[0], X[0], 9, 9),
            RuntimeError,
            "^LAV: backend 'cuda'",
        ),
        (
            lambda: SoftDTW(False, backend="cuda")(X, Y),
            RuntimeError,
            "^SoftDTW: backend 'cuda'",
        ),
    ],
)
def test_errors_name_what_was_called(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("ae2_loss", fastseq.ae2_loss),
        ("gta_loss", fastseq.gta_loss),
        ("gta_loss", lambda x, y: fastseq.gta_loss(x, y, consistency=False)),
        ("lrprop_loss", fastseq.lrprop_loss),
        ("lav_loss", fastseq.lav_loss),
        ("soft_dtw", lambda x, y: fastseq.soft_dtw(x, y).sum()),  # also after the others
    ],
)
def test_second_derivatives_name_what_was_called(op, call):
    x, y = randn(1, 4, 3).requires_grad_(), randn(1, 5, 3, seed=1)
    (grad,) = torch.autograd.grad(call(x, y), x, create_graph=True)
    text = rf'^{op}: .* differentiated twice .*: {op}\(\.\.\., backend="reference"\)$'
    with pytest.raises(RuntimeError, match=text):
        grad.square().sum().backward()
