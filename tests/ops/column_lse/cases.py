"""Inputs of column_lse, and its value and gradients."""

import torch
from torch.nn.functional import normalize

from fastseq.ops.column_lse import column_lse


def inputs(num, frames, columns, d, *, seed=0, dtype=torch.float32):
    """Unit vectors (N, T, D) and (N, S, D), and an upstream gradient (N, S)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(num, n, d, generator=generator) for n in (frames, columns))
    grad = torch.randn(num, columns, generator=generator)
    return tuple(t.to(dtype) for t in (normalize(x, dim=-1), normalize(y, dim=-1), grad))


def plain(x, y, grad, lengths_x=None, lengths_y=None, *, rate=10.0):
    """The same by autograd in the dtype of the inputs; all pairs have real frames."""
    a, b = (z.detach().requires_grad_() for z in (x, y))
    exponents = (a @ b.mT - 1) * rate
    if lengths_x is not None:
        real = torch.arange(x.shape[1], device=x.device) < lengths_x[:, None]
        exponents = exponents.masked_fill(~real[..., None], -torch.inf)
    value = exponents.logsumexp(1)
    if lengths_y is not None:
        real = torch.arange(y.shape[1], device=x.device) < lengths_y[:, None]
        value = value.masked_fill(~real, 0)
    return (value.detach(), *torch.autograd.grad(value, (a, b), grad))


def value_and_grads(x, y, grad, lengths_x=None, lengths_y=None, *, rate=10.0, backend):
    a, b = (z.detach().requires_grad_() for z in (x, y))
    value = column_lse(a, b, lengths_x, lengths_y, rate, backend)
    return (value.detach(), *torch.autograd.grad(value, (a, b), grad))
