import pytest

from fastseq.ops.common import short


@pytest.fixture(autouse=True)
def _poison(nan_empty):
    """Every op test runs with NaN in memory that nobody has written."""


@pytest.fixture(params=["kept", "formed again"])
def pairs(request, monkeypatch):
    """On the CPU the backward gets what the forward kept of each pair, or forms it again."""
    monkeypatch.setattr(short, "KEPT_BYTES", 1 << 40 if request.param == "kept" else 0)
