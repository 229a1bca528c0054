"""contrastive_idm as independent float64 loops, and helpers of its tests."""

import torch

BACKENDS = ["reference", "torch"]


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def brute_force(
    z,
    t=None,
    *,
    window=10.0,
    margin=2.0,
    kind="contrastive",
    weights="paper",
    distance="sqeuclidean",
):
    """Eq. 7 (or 6) of one sequence (T, D) as a Python float, one pair at a time."""
    z = z.double()
    t = range(len(z)) if t is None else t.tolist()
    total = 0.0
    for i in range(len(z)):
        for j in range(len(z)):
            d = float((z[i] - z[j]).square().sum())
            if distance == "euclidean":
                d **= 0.5
            gap = abs(t[i] - t[j])
            if kind == "idm":
                total += -(gap**2 + 1) * d
            elif gap > window:
                total += (gap**2 + 1 if kind == "contrastive" else 1) * max(0.0, margin - d)
            elif kind == "contrastive" and weights == "paper":
                total += d / (gap**2 + 1)
            else:
                total += d
    return total


def loss_and_grad(z, *args, upstream=1.0, **kwargs):
    import fastseq

    z = z.detach().requires_grad_()
    loss = fastseq.contrastive_idm(z, *args, **kwargs)
    return loss, *torch.autograd.grad((loss * upstream).sum(), z)


def clear_of_margin(z, margin, room):
    """A margin near the requested one, such that no squared distance is within ``room`` of it.

    The hinge's slope jumps there, and rounding decides on which side a pair is.
    """
    d = torch.cdist(z[0], z[0]).square().flatten()
    d = d[(d - margin).abs() < 1000 * room].sort().values
    widest = int(d.diff().argmax())
    assert d[widest + 1] - d[widest] > 2 * room, "no gap that wide between two distances"
    return float(d[widest : widest + 2].mean())


def two_scales(frames):
    """(1, T, 128): frames of 16 kinds in turn, squared distances about 0.5 within a kind and 2.5
    between kinds, none of them within 0.1 of 1.3.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, frames, 128, dtype=torch.float64, generator=generator)
    z = torch.eye(128, dtype=torch.float64)[torch.arange(frames) % 16] + noise / (2 * 128**0.5)
    d = torch.cdist(z[0, :1000], z[0]).square()
    assert ((d - 1.3).abs() > 0.1).all()
    return z
