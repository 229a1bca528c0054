"""The benchmark of entropic transport: peers compute the same function. Tiny shapes; speed is not
tested.
"""

import pytest

from benchmarks import gate, run, sinkhorn
from benchmarks.case import Case
from benchmarks.timing import gradients

CASE = Case(2, 20, 16)


@pytest.mark.parametrize("name", ["fastseq torch", "eager", "released"])
def test_providers_compute_the_loss(name):
    args = sinkhorn.inputs(CASE)
    want = sinkhorn.expected(CASE, args)
    provider = next(p for p in sinkhorn.providers("cpu") if p.name == name)
    loss = provider.build(CASE)(*args)
    assert gate.relative(loss.detach(), want[0]) < 1e-6
    for grad, right in zip(gradients(loss, args, 1.0), want[1:], strict=True):
        assert gate.relative(grad, right) < 1e-5


def test_a_case_is_measured(tmp_path):
    rows, wrong = run.run_case(
        "sinkhorn",
        CASE,
        tmp_path,
        budget_s=0.01,
        names=["fastseq torch", "eager"],
        memory=False,
    )
    assert not wrong
    assert {row["provider"] for row in rows} == {"fastseq torch", "eager"}
    assert {row["mode"] for row in rows} == set(sinkhorn.MODES)
    assert list(tmp_path.rglob("sinkhorn.csv"))
