"""tests/interpreted.py: faster, and the same bits."""

import interpreted
import pytest
import torch

import fastseq


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_patching_once_per_launch_changes_no_bit(monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):
        pytest.skip("this version of Triton is left as it is")
    patches = []
    monkeypatch.setattr(interpreter._LangPatchScope, "__init__", _counting(interpreter, patches))
    x, y = (torch.randn(1, 20, 5, requires_grad=True) for _ in range(2))

    def call():
        patches.clear()
        loss = fastseq.scl_loss(x, y, backend="triton")
        return loss, *torch.autograd.grad(loss, (x, y)), len(patches)

    *once, few = call()
    monkeypatch.setattr(interpreter, "_patch_lang", interpreted.original[0])
    *each_time, many = call()
    assert all(map(torch.equal, once, each_time))
    assert 0 < few < many


def _counting(interpreter, patches):
    start = interpreter._LangPatchScope.__init__

    def count(self):
        patches.append(self)
        start(self)

    return count
