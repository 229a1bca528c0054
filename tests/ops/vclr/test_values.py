"""VCLR's losses: both forms against values computed by hand and against the released steps."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastseq


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def hand_made():
    """Cosines 0.6 with the positive, 0 and -1 with the negatives; no vector has norm 1."""
    q = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    positive = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    negatives = torch.tensor([[[0.0, 5.0], [-0.5, 0.0]]], dtype=torch.float64)
    return q, positive, negatives


def test_intra_by_hand():
    right, wrong = math.exp(0.6 / 0.5), (math.exp(0), math.exp(-1 / 0.5))
    paper = -math.log(right / (right + sum(wrong)))
    code = -sum(math.log(right / (right + w)) for w in wrong) / 2
    assert code < paper - 0.1  # the switch matters
    for form, want in (("paper", paper), ("code", code)):
        got = fastseq.intra_nce(*hand_made(), temperature=0.5, form=form)
        assert got.item() == pytest.approx(want, rel=1e-13)
    # Scores of 6, 0 and -1 over 0.5 without the norms.
    plain = fastseq.intra_nce(*hand_made(), temperature=0.5, normalize=False)
    want = math.log(1 + math.exp(-12) + math.exp(-14))
    assert plain.item() == pytest.approx(want, rel=1e-9)


def test_intra_as_released():
    """Two 2-way problems with the positive first, stacked, cross-entropy with label 0."""
    q, k1, rest = randn(5, 8), randn(5, 8, seed=1), randn(5, 2, 8, seed=2)
    u, v1, v = (F.normalize(z, dim=-1) for z in (q, k1, rest))
    pairs = [torch.stack([(u * v1).sum(1), (u * v[:, m]).sum(1)], 1) / 0.1 for m in range(2)]
    want = F.cross_entropy(torch.cat(pairs), torch.zeros(10).long())
    torch.testing.assert_close(fastseq.intra_nce(q, k1, rest, form="code"), want)
    every = torch.cat([pairs[0], pairs[1][:, 1:]], 1)
    want = F.cross_entropy(every, torch.zeros(5).long(), reduction="none")
    torch.testing.assert_close(fastseq.intra_nce(q, k1, rest, reduction="none"), want)
    torch.testing.assert_close(fastseq.intra_nce(q, k1, rest, reduction="sum"), want.sum())
    # The softmax equals that of queue_nce with each query's own negatives as its queue.
    own = [fastseq.queue_nce(q[n : n + 1], k1[n : n + 1], v[n]) for n in range(5)]
    torch.testing.assert_close(torch.stack(own), want)


def test_one_negative_makes_the_forms_equal():
    args = randn(4, 6), randn(4, 6, seed=1), randn(4, 1, 6, seed=2)
    torch.testing.assert_close(
        fastseq.intra_nce(*args, form="paper"), fastseq.intra_nce(*args, form="code")
    )


def order_by_hand(form):
    """One sample, two frames of two channels each, an identity-like classifier."""
    q = torch.tensor([[[3.0, 4.0], [4.0, 3.0]]], dtype=torch.float64)
    k = torch.tensor([[[6.0, 8.0], [0.0, 5.0]]], dtype=torch.float64)
    if form == "paper":  # each frame divided by its norm
        flat = [0.6, 0.8, 0.8, 0.6, 0.6, 0.8, 0.0, 1.0]
    else:  # each channel divided by its norm along the frames
        flat = [0.6, 0.8, 0.8, 0.6, 1.0, 8 / math.sqrt(89), 0.0, 5 / math.sqrt(89)]
    weight = randn(4, 8, seed=5)
    logits = [sum(w * x for w, x in zip(row, flat, strict=True)) for row in weight.tolist()]
    want = [math.log(sum(math.exp(z) for z in logits)) - logits[label] for label in range(4)]
    return q, k, weight, want


@pytest.mark.parametrize("form", ["paper", "code"])
def test_order_by_hand(form):
    q, k, weight, want = order_by_hand(form)
    for label in range(4):
        got = fastseq.temporal_order_loss(
            q, k, torch.tensor([label]), lambda x: x @ weight.mT, form=form
        )
        assert got.item() == pytest.approx(want[label], rel=1e-12)


def test_order_as_released():
    """F.normalize(dim=1) of (B, 3, D), flattened, concatenated, Linear to 4, cross-entropy."""
    q, k, classifier = randn(6, 3, 8), randn(6, 3, 8, seed=1), torch.nn.Linear(48, 4).double()
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    joined = torch.cat([F.normalize(z, dim=1).view(6, -1) for z in (q, k)], 1)
    want = F.cross_entropy(classifier(joined), labels, reduction="none")
    got = fastseq.temporal_order_loss(q, k, labels, classifier, form="code", reduction="none")
    torch.testing.assert_close(got, want)
    mean = fastseq.temporal_order_loss(q, k, labels.int(), classifier, form="code")
    torch.testing.assert_close(mean, want.mean())
    paper = fastseq.temporal_order_loss(q, k, labels, classifier)
    assert abs(paper - mean) > 1e-3
    # The code's form loses the scale of a channel.
    scaled = q * torch.tensor([1.0, 9.0, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0])
    same = fastseq.temporal_order_loss(scaled, k, labels, classifier, form="code")
    torch.testing.assert_close(same, mean)
    other = fastseq.temporal_order_loss(scaled, k, labels, classifier)
    assert abs(other - paper) > 1e-3


def test_the_order_head_learns_which_tuple_was_shuffled():
    """Frames that count upwards: a linear classifier distinguishes the four cases."""
    make = torch.Generator().manual_seed(0)
    rows, labels = [], torch.arange(64) % 4
    for label in labels.tolist():
        tuples = [torch.eye(3) + 0.1 * torch.randn(3, 3, generator=make) for _ in range(2)]
        for which in range(2):
            if label >> which & 1:
                tuples[which] = tuples[which][[1, 2, 0]]
        rows.append(torch.stack(tuples))
    q, k = torch.stack(rows).unbind(1)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(18, 4)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0)
    losses = []
    for _ in range(40):
        loss = fastseq.temporal_order_loss(q, k, labels, classifier)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.3)
    assert losses[-1] < 0.3


def parts():
    queue, other = (F.normalize(randn(20, 8, seed=s), dim=1) for s in (7, 8))
    classifier = torch.nn.Linear(48, 4).double()
    return {
        "inter": (randn(5, 8), randn(5, 3, 8, seed=1), queue),
        "intra": (randn(5, 8, seed=2), randn(5, 8, seed=3), randn(5, 2, 8, seed=4)),
        "video": (randn(5, 8, seed=5), randn(5, 8, seed=6), other),
        "order": (randn(5, 3, 8, seed=9), randn(5, 3, 8, seed=10), torch.arange(5) % 4, classifier),
    }


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_sum_of_four(form):
    given = parts()
    inter, intra = (
        fastseq.queue_nce(*given["inter"], temperature=0.3),
        fastseq.intra_nce(*given["intra"], temperature=0.3, form=form),
    )
    video = fastseq.queue_nce(*given["video"], temperature=0.3)
    order = fastseq.temporal_order_loss(*given["order"], form=form)
    terms = torch.stack([inter, intra, video, order])
    for weights in ((1, 1, 1, 1), (0.5, 2, 0, 3.0)):
        got = fastseq.vclr_loss(**given, weights=weights, temperature=0.3, form=form)
        torch.testing.assert_close(got, (terms * torch.tensor(weights)).sum())
    for name, term in zip(given, terms, strict=True):
        alone = fastseq.vclr_loss(**{name: given[name]}, temperature=0.3, form=form)
        torch.testing.assert_close(alone, term)
    two = fastseq.vclr_loss(inter=given["inter"], order=given["order"], temperature=0.3, form=form)
    torch.testing.assert_close(two, inter + order)


def test_every_part_gets_its_gradient():
    given = parts()
    leaves = [args[0].requires_grad_() for args in given.values()]
    loss = fastseq.vclr_loss(**given)
    grads = torch.autograd.grad(loss, [*leaves, *given["order"][3].parameters()])
    assert all(g.abs().sum() > 0 for g in grads)
    one = fastseq.vclr_loss(**given, weights=(0, 0, 1, 0))
    grads = torch.autograd.grad(one, leaves)
    assert [bool(g.abs().sum() > 0) for g in grads] == [False, False, True, False]


@pytest.mark.parametrize("form", ["paper", "code"])
def test_gradients(form):
    q, positive, negatives = randn(2, 3), randn(2, 3, seed=1), randn(2, 2, 3, seed=2)

    def intra(*args):
        return fastseq.intra_nce(*args, temperature=0.7, form=form)

    leaves = [z.requires_grad_() for z in (q, positive, negatives)]
    assert torch.autograd.gradcheck(intra, leaves)
    assert torch.autograd.gradgradcheck(intra, leaves)
    labels, classifier = torch.tensor([3, 1]), torch.nn.Linear(12, 4).double()

    def order(q, k):
        return fastseq.temporal_order_loss(q, k, labels, classifier, form=form)

    leaves = [randn(2, 2, 3, seed=s).requires_grad_() for s in (3, 4)]
    assert torch.autograd.gradcheck(order, leaves)
    assert torch.autograd.gradgradcheck(order, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_and_autocast_give_float32(dtype):
    args = [randn(4, *shape).to(dtype) for shape in ((8,), (8,), (2, 8))]
    want = fastseq.intra_nce(*(z.double() for z in args))
    got = fastseq.intra_nce(*args)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    q, k, classifier = randn(4, 3, 8).to(dtype), randn(4, 3, 8).to(dtype), torch.nn.Linear(48, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastseq.intra_nce(*args) == got
        loss = fastseq.temporal_order_loss(q, k, torch.zeros(4).long(), classifier)
    assert loss.dtype == torch.float32


def test_an_empty_batch_and_nan():
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = fastseq.intra_nce(empty, empty, torch.zeros(0, 2, 4))
    assert loss == 0
    assert torch.autograd.grad(loss, empty)[0].shape == (0, 4)
    frames = torch.zeros(0, 3, 4)
    classifier = torch.nn.Linear(24, 4)
    assert fastseq.temporal_order_loss(frames, frames, torch.zeros(0).long(), classifier) == 0
    bad = randn(3, 4)
    bad[1, 0] = torch.nan
    for form in ("paper", "code"):
        kw = {"form": form, "reduction": "none"}
        got = fastseq.intra_nce(bad, randn(3, 4), randn(3, 2, 4), **kw)
        assert got.isnan().tolist() == [False, True, False]


INTRA = {"q": torch.ones(2, 4), "positive": torch.ones(2, 4), "negatives": torch.ones(2, 3, 4)}
ORDER = {
    "q": torch.ones(2, 3, 4),
    "k": torch.ones(2, 3, 4),
    "labels": torch.tensor([0, 3]),
    "classifier": torch.nn.Linear(24, 4),
}


@pytest.mark.parametrize(
    ("function", "change", "error", "text"),
    [
        ("intra", {"q": torch.ones(2, 4).long()}, TypeError, "q must be float64"),
        ("intra", {"positive": None}, TypeError, "positive must be a torch.Tensor, got NoneType"),
        ("intra", {"positive": torch.ones(2, 5)}, ValueError, r"\(2, 4\) and \(2, 5\)"),
        ("intra", {"negatives": torch.ones(2, 4)}, ValueError, "negatives must have shape"),
        ("intra", {"negatives": torch.ones(2, 0, 4)}, ValueError, "M >= 1"),
        ("intra", {"form": "pape"}, ValueError, "'paper', 'code'"),
        ("intra", {"temperature": 0}, ValueError, "temperature"),
        ("intra", {"reduction": "avg"}, ValueError, "reduction"),
        ("order", {"k": torch.ones(2, 2, 4)}, ValueError, r"\(2, 3, 4\) and \(2, 2, 4\)"),
        ("order", {"labels": [0, 1]}, TypeError, "labels must be a torch.Tensor, got list"),
        ("order", {"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels must be integers"),
        ("order", {"labels": torch.tensor([0])}, ValueError, r"shape \(2,\), got \(1,\)"),
        ("order", {"labels": torch.tensor([0, 4])}, ValueError, "between 0 and 3, got 4"),
        ("order", {"classifier": torch.nn.Linear(24, 5)}, ValueError, r"\(2, 4\), got \(2, 5\)"),
        ("order", {"form": "x"}, ValueError, "form"),
    ],
)
def test_wrong_input(function, change, error, text):
    call, good = {
        "intra": (fastseq.intra_nce, INTRA),
        "order": (fastseq.temporal_order_loss, ORDER),
    }[function]
    with pytest.raises(error, match=text):
        call(**(good | change))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "at least one of inter, intra, video and order"),
        ({"inter": (1, 2)}, "inter must be a tuple of 3, got 2"),
        ({"order": torch.ones(4)}, "order must be a tuple of 4, got Tensor"),
        ({"weights": (1, 1)}, "weights must be 4 numbers, got 2"),
        ({"weights": (1, -1, 1, 1)}, r"weights\[1\] must be"),
        ({"form": "x"}, "form"),
    ],
)
def test_wrong_parts(options, text):
    with pytest.raises(ValueError, match=text):
        fastseq.vclr_loss(**options)


@pytest.mark.compile
def test_compiled_equals_eager():
    given = parts()
    q = given["inter"][0].clone()

    def train(q):
        inter = (q * 2, *given["inter"][1:])
        return fastseq.vclr_loss(**(given | {"inter": inter}), form="code")

    pair = []
    torch._dynamo.reset()
    for function in (train, torch.compile(train, fullgraph=True, backend="aot_eager")):
        leaf = q.clone().requires_grad_()
        loss = function(leaf)
        pair.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(map(torch.equal, *pair))
