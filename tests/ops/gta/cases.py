"""GTA's and AE2's losses as the released code computes them: float64 loops, one pair at a time."""

import numpy as np

MINIMA = {"prob": "dtw_prob", "logsumexp": "dtw_minGamma"}  # the released names


def log_softmax(t, axis):
    t = t - t.max(axis, keepdims=True)
    return t - np.log(np.exp(t).sum(axis, keepdims=True))


def table(x, y, gamma=0.1, temperature=0.1, softmin="prob"):
    """R (T, S) of embeddings (T, D) and (S, D), which are normalised first."""
    x, y = (np.asarray(z.detach().double()) for z in (x, y))
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    cost = -log_softmax(x @ y.T / temperature, 0)
    n, m = cost.shape
    r = np.full((n + 1, m + 1), float(np.finfo(np.float32).max))
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = np.array([r[i, j - 1], r[i - 1, j - 1], r[i - 1, j]])
            a = -before / gamma
            if softmin == "prob":
                p = np.exp(a - a.max())
                soft = (p / p.sum() * before).sum()
            else:
                soft = -gamma * (a.max() + np.log(np.exp(a - a.max()).sum()))
            r[i, j] = cost[i - 1, j - 1] + soft
    return r[1:, 1:]


def released_gta(x, y, *, consistency=True, label_smoothing=0.1, **options):
    """compute_dtw_alignment_consistency_loss of one pair."""
    xy, yx = table(x, y, **options), table(y, x, **options)
    loss = 0.1 * xy[-1, -1] + 0.1 * yx[-1, -1]
    if consistency:
        cycle = (np.exp(log_softmax(-xy, 0)) @ np.exp(log_softmax(-yx, 0))).T
        n = len(cycle)
        target = (1 - label_smoothing) * np.eye(n) + label_smoothing / n
        loss += -(target * log_softmax(cycle, 1)).sum(1).mean()
    return loss


def released_ae2(x, y, frames_x=None, frames_y=None, *, margin=0.0, ratio=1.0, scale=0.01, **rest):
    """compute_dtw_alignment_contrastive_loss of one pair; frames: pos_indices, increasing."""
    u = x if frames_x is None else x[frames_x]
    v = y if frames_y is None else y[frames_y]
    full, a, b = (scale * table(*z, **rest)[-1, -1] for z in ((x, y), (u, v), (u, v.flip(0))))
    return np.mean([full, a]) + ratio * max(a - b + margin, 0)
