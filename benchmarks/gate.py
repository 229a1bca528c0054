"""Checks loss and gradients against the op's float64 result, so that no wrong function is timed."""

from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.case import PRECISIONS, Case, Provider
from benchmarks.timing import gradients

# Largest relative error of loss and gradients against float64; a larger error means that the
# provider computes something else.
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 2e-2, "bf16": 5e-2}


class WrongResult(Exception):
    """A provider's result differs from the reference, so its speed would be meaningless."""


@contextmanager
def matmul_precision(case: Case):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def gate(provider: Provider, case: Case, fn, args: tuple[Tensor, ...], want) -> float:
    """Return the largest relative error of a gradient; raise WrongResult if it or the loss is
    wrong.
    """
    loss = fn(*args)
    grads = gradients(loss, args, case.upstream)
    errors = [relative(g / case.upstream, w) for g, w in zip(grads, want[1:], strict=True)]
    allowed = TOLERANCE[case.precision] + provider.tolerance
    _refuse(provider, case, relative(loss.detach(), want[0]), allowed)
    off = float(torch.tensor(errors).max())  # the built-in max may skip a NaN
    _refuse(provider, case, off, allowed + provider.gradient_tolerance)
    return off


def _refuse(provider: Provider, case: Case, off: float, allowed: float) -> None:
    if not off <= allowed:  # also refuses NaN
        raise WrongResult(
            f"{provider.name} at {case}: relative error {off:.2g} against the float64 "
            f"reference, allowed {allowed:.2g}; it was not timed"
        )
