"""python -m fastseq.selftest passes here and detects a wrong backend."""

import dataclasses

import pytest
import torch

from fastseq import selftest
from fastseq.ops.common.dispatch import BackendStatus


@pytest.fixture
def square():
    """An op with a correct "torch" backend: x -> sum of squares."""
    return selftest.Case(
        "square",
        lambda generator: (torch.randn(50, generator=generator, dtype=torch.float64),),
        lambda x, backend: x.square().sum(),
        {"torch": (torch.float64, torch.float32)},
    )


def altered(case, change):
    def call(x, backend):
        out = x.square().sum()
        return change(x, out) if backend == "torch" else out

    return dataclasses.replace(case, call=call)


def verdicts(case):
    return [row[-1] for row in selftest.run([case], "cpu")]


def test_right_backend_passes(square):
    assert verdicts(square) == ["ok", "ok"]


def test_wrong_values_and_wrong_gradients_fail(square):
    assert verdicts(altered(square, lambda x, y: y * (1 + 1e-5))) == ["FAILED", "FAILED"]
    wrong_gradient = altered(square, lambda x, y: y.detach() + (y - y.detach()) * (1 - 1e-5))
    assert verdicts(wrong_gradient) == ["FAILED", "FAILED"]
    assert verdicts(altered(square, lambda x, y: y * float("nan"))) == ["FAILED", "FAILED"]


def test_a_backend_that_raises_fails_with_its_message(square):
    def explode(x, y):
        raise RuntimeError("no such kernel\nsecond line")

    assert verdicts(altered(square, explode)) == ["FAILED: RuntimeError: no such kernel"] * 2


def test_unavailable_backends_are_skipped_with_the_reason(square, monkeypatch, capsys):
    missing = BackendStatus(False, "no hands", "grow some")
    monkeypatch.setattr(selftest, "backend_status", lambda name: missing)
    monkeypatch.setattr(selftest, "CASES", [square])
    assert selftest.main([]) == 0
    out = capsys.readouterr().out
    assert "skipped: no hands" in out
    assert "0 ok, 0 failed, 1 skipped" in out


def test_exit_code(square, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "CASES", [square])
    assert selftest.main([]) == 0
    monkeypatch.setattr(selftest, "CASES", [square, altered(square, lambda x, y: y + 1)])
    assert selftest.main([]) == 1
    assert "2 ok, 2 failed, 0 skipped" in capsys.readouterr().out


def test_every_shipped_case_with_the_torch_backend():
    cases = [
        dataclasses.replace(case, dtypes={"torch": case.dtypes["torch"]})
        for case in selftest.CASES
        if "torch" in case.dtypes
    ]
    rows = selftest.run(cases, "cpu")
    assert len(rows) >= 4
    assert {row[-1] for row in rows} == {"ok"}
