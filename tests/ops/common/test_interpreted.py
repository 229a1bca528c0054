"""tests/interpreted.py is faster than Triton's interpreter and returns the same bits."""

import interpreted
import numpy as np
import pytest
import torch

import fastseq

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture
def replaced():
    pytest.importorskip("triton")
    if not interpreted.replaced:
        pytest.skip("this version of Triton is left as it is")
    return interpreted.replaced


def every_op(dtype):
    x, y = (torch.randn(1, n, 5).to(dtype).requires_grad_() for n in (20, 13))
    queue, positives = torch.randn(30, 5).to(dtype), torch.randn(20, 1, 5).to(dtype)
    out = []
    for loss in (
        fastseq.scl_loss(x, y, lengths1=[17], backend="triton"),
        fastseq.contrastive_idm(x, torch.arange(20), lengths=[17], backend="triton"),
        fastseq.tcc_loss(x, y, lengths_y=[11], backend="triton"),
        fastseq.queue_nce(x[0], positives, queue, backend="triton"),
    ):
        out += [loss, *torch.autograd.grad(loss, (x, y), allow_unused=True)]
    return [t for t in out if t is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_bit_changes(replaced, monkeypatch, dtype):
    fast = every_op(dtype)
    for owner, name, own in replaced:
        assert getattr(owner, name) is not own
        monkeypatch.setattr(owner, name, own)
    torch.manual_seed(0)
    assert all(map(torch.equal, fast, every_op(dtype)))
    assert len(fast) == 10


@pytest.mark.parametrize("source", ["bf16", "fp32"])
def test_no_bit_of_a_conversion_changes(replaced, source):
    """Numbers of every sign and exponent, including zeros, subnormal numbers, infinities and
    NaN.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    own = next(old for owner, name, old in replaced if name == "_convert_float")
    ours = interpreter._convert_float
    high = np.arange(2**9, dtype=np.uint32)[:, None] << 23
    low = np.random.default_rng(0).integers(0, 2**23, (2**9, 40), np.uint32)
    low[:, :4] = 0, 1, 2**16, 2**23 - 1
    bits, types = high | low, (tl.float32, tl.bfloat16)
    if source == "bf16":
        bits, types = (bits >> 16).astype(np.uint16), types[::-1]
    for row in (*bits, np.broadcast_to(bits[300, 5], (2, 3)), bits[300:304].T):
        got, want = ours(row, *types, None), own(row, *types, None)
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


def test_overflow_wraps_around_as_in_triton(replaced):
    """Even if Triton's own check reported an overflow."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(p, n):
        tl.store(p + tl.arange(0, 2), tl.load(p + tl.arange(0, 2)) + n)

    p = torch.tensor([0, 2**31 - 6], dtype=torch.int32)
    kernel[(1,)](p, 6)
    assert p.tolist() == [6, -(2**31)]
