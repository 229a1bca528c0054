"""The benchmark of queue_nce: its peers compute the same loss and gradient. Speed is not tested."""

import pytest

from benchmarks import gate, queue_nce, queue_nce_peers, run
from benchmarks.case import Case
from benchmarks.floors import PEAKS, floor_seconds
from benchmarks.scl_peers import dense_lse

CASE = Case(9, 70, 16)


def _dense_flex(q, positives, queue):
    lse = dense_lse(q[None], queue[None])[0]
    return queue_nce_peers._from_lse(lse, q, positives)


@pytest.mark.parametrize(
    "peer",
    [queue_nce_peers.released, queue_nce_peers.once, queue_nce_peers.shared_lse, _dense_flex],
)
def test_peers_compute_the_loss(peer):
    args = queue_nce.inputs(CASE)
    want = queue_nce.expected(CASE, args)
    loss = peer(*args)
    assert gate.relative(loss.detach(), want[0]) < 1e-6
    (grad,) = gate.gradients(loss, args, 1.0)
    assert gate.relative(grad, want[1]) < 1e-5


@pytest.mark.process
def test_a_case_is_measured(tmp_path):
    names = ["fastseq torch", "released", "shared lse"]
    rows, wrong = run.run_case(
        "queue_nce", CASE, tmp_path, budget_s=0.01, names=names, memory=False
    )
    assert not wrong
    assert {row["provider"] for row in rows} == set(names)
    assert {row["mode"] for row in rows} == set(queue_nce.MODES)
    assert all(row["median_ms"] for row in rows)


def test_floor_on_an_h200():
    """(512, 131072, 128) bf16: 34.4 GFLOP at 790 TFLOP/s, 67 M exp and the arithmetic around
    them.
    """
    case = Case(512, 131072, 128, "bf16", "cuda")
    seconds = floor_seconds(queue_nce.work(case, "both"), "bf16", PEAKS["NVIDIA H200"])
    products, exps = 34.36e9 / 790e12, 67.1e6 / (132 * 16 * 1.98e9)
    assert seconds == pytest.approx(products + exps * (1 + 5 * 16 / 128), rel=1e-3)
