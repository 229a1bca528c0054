"""The Boundary-Matching Network (Lin et al. 2019, arXiv 1907.09702)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from training.localisation.targets import valid_entries

CHANNELS = 128  # of the paper, Table 1; others are 2 and 4 times as many
SAMPLES = 32
CONTEXT = 0.5  # of a proposal's length, on each side; boundary_ratio of the BMN repository


def sampling_positions(steps: int, samples: int = SAMPLES) -> np.ndarray:
    """Where a proposal's features are read: evenly from its start - l/2 to its end + l/2.

    l is the proposal's length. Unit: steps of the features, of which number i is at i.

    Returns:
        float64 (E, samples), one row for each valid entry (d, t) of `valid_entries`, row by row.
    """
    d, t = np.nonzero(valid_entries(steps))
    length = (d + 1.0)[:, None]
    share = np.linspace(0.0, 1.0, samples) if samples > 1 else np.array([0.5])
    # A proposal covers t to t + d + 1, and the middle of the first step is 0.5.
    return t[:, None] - CONTEXT * length + share * (1 + 2 * CONTEXT) * length - 0.5


def sampling_matrix(steps: int, samples: int = SAMPLES) -> Tensor:
    """The linear interpolation at `sampling_positions`, as a sparse matrix.

    Features outside the video are 0. Returns float32 COO (E, samples * steps): row = entry, column
    = sample * steps + step.
    """
    positions = sampling_positions(steps, samples)
    entries, columns, values = [], [], []
    lower = np.floor(positions).astype(int)
    for step, weight in ((lower, lower + 1 - positions), (lower + 1, positions - lower)):
        entry, sample = np.nonzero((step >= 0) & (step < steps) & (weight > 0))
        entries.append(entry)
        columns.append(sample * steps + step[entry, sample])
        values.append(weight[entry, sample])
    index = torch.from_numpy(np.stack([np.concatenate(entries), np.concatenate(columns)]))
    weights = torch.from_numpy(np.concatenate(values)).float()
    size = (len(positions), samples * steps)
    return torch.sparse_coo_tensor(index, weights, size, check_invariants=True).coalesce()


class BoundaryMatching(nn.Module):
    """The boundary-matching layer and the 3-D convolution over its samples, in one.

    out[h, (d, t)] = b[h] + sum_{n, c} w[h, c, n] x_n(d, t)[c], where x_n(d, t) is the feature at
    sample n of the proposal. Interpolation and convolution are both linear, so the convolution
    comes first: the samples of all proposals, (N, C, samples, T, T), are never stored.

    Args:
        channels, out: C and H. steps: T. samples: number of samples of each proposal.
    """

    def __init__(self, channels: int, out: int, steps: int, samples: int = SAMPLES):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, samples))
        self.bias = nn.Parameter(torch.zeros(out))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.register_buffer("matrix", sampling_matrix(steps, samples), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) -> (N, H, E), one column for each valid entry."""
        count = len(x)
        mixed = torch.einsum("hcn,bct->ntbh", self.weight, x)
        rows = mixed.reshape(-1, count * len(self.bias))
        found = torch.sparse.mm(self.matrix.to(rows.dtype), rows)
        return found.view(-1, count, len(self.bias)).permute(1, 2, 0) + self.bias[:, None]


class BMN(nn.Module):
    """Scores of starts, of ends and of all proposals of a video.

    Base: two 1-D convolutions, F -> 2C -> C. Boundaries: C -> 2C -> 2. Proposals: boundary matching
    C -> 4C, then 2-D convolutions 4C -> C (1 x 1), C -> C twice (3 x 3), C -> 2 (1 x 1). All but
    the last have a ReLU. Features are standardised by ``mean`` and ``std`` first.

    Args:
        features: F.
        steps: T.
        channels: C, 128 in the paper.
        samples: samples of a proposal, 32 in the paper.
    """

    def __init__(
        self, features: int, steps: int, *, channels: int = CHANNELS, samples: int = SAMPLES
    ):
        super().__init__()
        double = 2 * channels
        self.base = nn.Sequential(
            nn.Conv1d(features, double, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(double, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.boundaries = nn.Sequential(
            nn.Conv1d(channels, double, 3, padding=1), nn.ReLU(), nn.Conv1d(double, 2, 1)
        )
        self.matching = BoundaryMatching(channels, 4 * channels, steps, samples)
        self.reduce = nn.Conv1d(4 * channels, channels, 1)  # 1 x 1, so before the map is filled
        self.proposals = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 1),
        )
        self.register_buffer("valid", torch.from_numpy(valid_entries(steps)), persistent=False)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, F) -> logits: start (N, T), end (N, T), maps (N, 2, T, T), duration by start.

        The first map is the completeness (regressed tIoU), the second the presence of an action.
        """
        x = self.base(((x - self.mean) / self.std).transpose(1, 2))
        boundaries = self.boundaries(x)
        entries = self.reduce(self.matching(x).relu()).relu()
        maps = entries.new_zeros(*entries.shape[:2], *self.valid.shape)
        maps[:, :, self.valid] = entries
        return boundaries[:, 0], boundaries[:, 1], self.proposals(maps)
