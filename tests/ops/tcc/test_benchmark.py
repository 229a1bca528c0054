"""The benchmark of tcc_loss: its peers compute the same loss and gradients. Speed is not tested."""

import pytest

from benchmarks import gate, tcc, tcc_peers
from benchmarks.case import Case
from benchmarks.floors import PEAKS, floor_seconds


@pytest.mark.parametrize("case", [Case(2, 70, 16), Case(1, 130, 128)], ids=str)
@pytest.mark.parametrize(
    ("peer", "tolerance"), [(tcc_peers.eager, 1e-5), (tcc_peers.attention, 2e-3)]
)
def test_peers_compute_the_loss(case, peer, tolerance):
    args = tcc.inputs(case)
    want = tcc.expected(case, args)
    loss = peer(*args)
    assert gate.relative(loss.detach(), want[0]) < tolerance
    for got, expected in zip(gate.gradients(loss, args, 1.0), want[1:], strict=True):
        assert gate.relative(got, expected) < tolerance


def test_expected_is_the_same_dense_and_blockwise(monkeypatch):
    case = Case(2, 70, 16)
    args = tcc.inputs(case)
    want = tcc.expected(case, args)
    monkeypatch.setattr(Case, "pairs", property(lambda self: 1 << 30))
    for a, b in zip(tcc.expected(case, args), want, strict=True):
        assert gate.relative(a, b) < 1e-10


def test_floor_on_an_h200():
    """(4, 4096, 128) bf16: 309 GFLOP at 790 TFLOP/s, 0.27 G exp and the arithmetic around them."""
    case = Case(4, 4096, 128, "bf16", "cuda")
    seconds = floor_seconds(tcc.work(case, "both"), "bf16", PEAKS["NVIDIA H200"])
    products, exps = 309.2e9 / 790e12, 0.2684e9 / (132 * 16 * 1.98e9)
    assert seconds == pytest.approx(products + exps * (1 + 5 * 16 / 128), rel=1e-3)
