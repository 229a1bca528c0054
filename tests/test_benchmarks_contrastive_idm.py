"""The benchmark of contrastive_idm: peers compute the same function. Tiny shapes; speed is not
tested.
"""

import pytest

from benchmarks import contrastive_idm, gate, run
from benchmarks.case import Case
from benchmarks.timing import gradients

CASE = Case(2, 60, 16)


@pytest.fixture(scope="module")
def problem():
    args = contrastive_idm.inputs(CASE)
    return args, contrastive_idm.expected(CASE, args)


@pytest.mark.parametrize("name", ["fastseq torch", "eager", "released"])
def test_providers_compute_the_loss(problem, name):
    args, want = problem
    provider = next(p for p in contrastive_idm.providers("cpu") if p.name == name)
    loss = provider.build(CASE)(*args)
    assert gate.relative(loss.detach(), want[0]) < 1e-6
    (grad,) = gradients(loss, args, 1.0)
    assert gate.relative(grad, want[1]) < 1e-5


def test_inputs_have_near_and_far_pairs_and_distances_around_the_margin(problem):
    z, t = problem[0]
    gap = (t[:, :, None] - t[:, None]).abs()
    near = (gap <= contrastive_idm.window(CASE)).float().mean()
    assert 1.05 / 60 < near < 0.5  # more than the diagonal
    assert (t.diff(dim=1) > 0).all()
    distance = (z[:, :, None] - z[:, None]).square().sum(-1)
    assert 0.2 < (distance < 2).float().mean() < 0.8


def test_a_case_is_measured(tmp_path):
    rows, wrong = run.run_case(
        "contrastive_idm",
        CASE,
        tmp_path,
        budget_s=0.01,
        names=["fastseq torch", "eager"],
        memory=False,
    )
    assert not wrong
    assert {row["provider"] for row in rows} == {"fastseq torch", "eager"}
    assert {row["mode"] for row in rows} == set(contrastive_idm.MODES)
    assert list(tmp_path.rglob("contrastive_idm.csv"))
