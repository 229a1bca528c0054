"""The case with a known released Soft-DTW value, and the released formula, one number at a time."""

import numpy as np
import torch

from ops.soft_dtw.cases import recursion, squared

STEPS_A, LENGTH_A = [0, 3, 9, 20, 33, 50], 60
STEPS_B, LENGTH_B = [2, 5, 11, 18, 30, 41], 45


def golden(dtype=torch.float64):
    """Embeddings (1, 6, 4) of both videos."""
    k = torch.arange(24, dtype=torch.float64)
    a, b = (torch.sin(0.9 * k + phase).view(1, 6, 4) for phase in (0.1, 1.3))
    return tuple(torch.nn.functional.normalize(z, dim=-1).to(dtype) for z in (a, b))


def released_idm(z, steps, length, sigma=10.0, margin=2.0):
    """Contrastive-IDM of one sequence (T, D); float32 decides which pairs are far."""
    z = np.asarray(z, np.float64)
    u = np.asarray(steps, np.float32) / np.float32(length)
    window = np.float32(sigma) / np.float32(length)
    total = 0.0
    for i in range(len(z)):
        for j in range(len(z)):
            d = ((z[i] - z[j]) ** 2).sum()
            gap = np.abs(u[i] - u[j])
            far = gap > window
            total += (1 + float(gap) ** 2) * max(0.0, margin - d) if far else d
    return total


def released(a, b, steps_a, steps_b, length_a, length_b, *, gamma=0.1, alpha=0.5, **kwargs):
    """The released total of one pair (T, D) and (T, D)."""
    idm = released_idm(a, steps_a, length_a, **kwargs) + released_idm(
        b, steps_b, length_b, **kwargs
    )
    return (recursion(squared(a, b), gamma)[0] + alpha * idm) / len(a)
