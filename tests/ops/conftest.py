import pytest

from fastseq.ops.common import short


@pytest.fixture(autouse=True)
def _poison(nan_empty):
    """Every op test runs with NaN in memory that has not been written."""


@pytest.fixture(params=["kept", "formed again"])
def pairs(request, monkeypatch):
    """On the CPU the backward reuses what the forward kept for each pair, or recomputes it."""
    monkeypatch.setattr(short, "KEPT_BYTES", 1 << 40 if request.param == "kept" else 0)
