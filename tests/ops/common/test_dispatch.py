"""An op with one backend more than triton, torch and reference."""

import pytest
import torch

from fastseq.ops.common import dispatch


@pytest.fixture(autouse=True)
def only_the_call_decides(monkeypatch):
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    ready = dispatch.BackendStatus(True, "", "")
    monkeypatch.setattr(dispatch, "backend_status", lambda name: ready)


def choose(requested: str, device_type: str, *, first: bool, why_not: str | None = None):
    others, more = dispatch.triton_and_torch(device_type, torch.float32), {"mine": why_not}
    backends = {**more, **others} if first else {**others, **more}
    return dispatch.choose_backend("some_op", requested, backends)


@pytest.mark.parametrize(("device_type", "preferred"), [("cpu", "torch"), ("cuda", "triton")])
def test_its_place_decides_what_auto_picks(device_type, preferred):
    assert choose("auto", device_type, first=False)[0] == preferred
    assert choose("auto", device_type, first=True)[0] == "mine"
    name, reason = choose("auto", device_type, first=True, why_not="not today")
    assert name == preferred
    assert reason == "preferred here; not mine: not today"


@pytest.mark.parametrize("first", [False, True])
def test_it_can_be_named(monkeypatch, first):
    assert choose("mine", "cpu", first=first) == ("mine", "named in the call")
    with pytest.raises(RuntimeError, match=r"'mine'.*does not support this call: not today"):
        choose("mine", "cpu", first=first, why_not="not today")
    with pytest.raises(ValueError, match=r"unknown backend 'other'.*'mine'"):
        choose("other", "cpu", first=first)
    monkeypatch.setenv("FASTSEQ_BACKEND", "mine")
    assert choose("auto", "cpu", first=first) == ("mine", "FASTSEQ_BACKEND")


@pytest.mark.parametrize("requested", ["auto", "torch", "triton", "reference"])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_an_op_without_more_chooses_from_the_same_dict(monkeypatch, requested, device_type):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    call = "some_op", requested
    want = dispatch.choose_backend(*call, dispatch.triton_and_torch(device_type, torch.float32))
    got = dispatch.choose_triton_or_torch(*call, device_type, torch.float32)
    assert got == want
    assert got[0] in (requested, "torch", "triton")
