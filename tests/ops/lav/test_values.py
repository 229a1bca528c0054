"""Values of the released LAV loss, computed by hand and by loops over Python numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

import fastseq

BACKENDS = ["reference", "torch", "auto"]
TRITON = pytest.param("triton", marks=pytest.mark.interpreter)
DTYPES = [(torch.float32, 1e-6), (torch.float64, 1e-12)]
SIGMA, MARGIN = 10.0, 2.0


def idm_loop(z, steps, duration, margin=MARGIN):
    """Sum over all ordered pairs, including the diagonal; float32 decides which are near."""
    total = 0.0
    for i in range(len(steps)):
        for j in range(len(steps)):
            distance = sum((float(a) - float(b)) ** 2 for a, b in zip(z[i], z[j], strict=True))
            share_i, share_j = (np.float32(steps[k]) / np.float32(duration) for k in (i, j))
            gap = abs(share_i - share_j)
            if gap > np.float32(SIGMA) / np.float32(duration):
                total += (1 + float(gap) ** 2) * max(0.0, margin - distance)
            else:
                total += distance
    return total


def soft_dtw_loop(x, y, gamma):
    """R_ij = D_ij + softmin of its three predecessors, shifted by the largest exponent for
    stability.
    """
    table = {(0, 0): 0.0}
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            before = [
                table[cell]
                for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1))
                if cell in table and (min(cell) > 0 or cell == (0, 0))
            ]
            low = min(before)
            softmin = low - gamma * math.log(sum(math.exp((low - b) / gamma) for b in before))
            pairs = zip(x[i - 1], y[j - 1], strict=True)
            table[i, j] = sum((float(a) - float(b)) ** 2 for a, b in pairs) + softmin
    return table[len(x), len(y)]


def lav_loop(x, y, steps_x, steps_y, duration_x, duration_y, *, gamma=0.1, alpha=0.5):
    idm = idm_loop(x, steps_x, duration_x) + idm_loop(y, steps_y, duration_y)
    return (soft_dtw_loop(x, y, gamma) + alpha * idm) / len(x)


def code_idm(z, steps, duration, **options):
    """The sum of one sequence as lav_loss computes it with form="code"."""
    return fastseq.contrastive_idm(
        z,
        torch.tensor(steps).float() / duration,
        window=torch.tensor([SIGMA / duration]),
        weights="code",
        reduction="sum",
        **options,
    )


def unit(*shape, seed, dtype):
    z = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1).to(dtype)


# Three frames on the unit circle, opposite ends and the middle: squared distances 2, 2 and 4.
# Multiples of 1/64 are exact in float32, so a gap of 10 frames is exactly the window.
CIRCLE = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
BY_HAND = [
    # (steps, margin, sum). (0, 1) is at the edge: near, 2 each way. (1, 2) is exactly at the margin
    # and (0, 2) beyond it: 0.
    ([0, 10, 30], 2.0, 4.0),
    # One frame further, (0, 1) is far too: nothing remains.
    ([0, 11, 30], 2.0, 0.0),
    # Margin 3: (1, 2) is 1 below it at a gap of 20/64, both ways; (0, 2) is beyond it.
    ([0, 10, 30], 3.0, 4.0 + 2 * (1 + (20 / 64) ** 2)),
    # Margin 5: all far. 3 at 11/64, 3 at 19/64, 1 at 30/64.
    ([0, 11, 30], 5.0, 2 * (3 * (2 + (11**2 + 19**2) / 64**2) + 1 + (30 / 64) ** 2)),
    # Equal times are near, in any order.
    ([30, 30, 30], 2.0, 2 * (2 + 2 + 4)),
]


@pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
@pytest.mark.parametrize(("steps", "margin", "value"), BY_HAND)
def test_contrastive_idm_by_hand(backend, steps, margin, value):
    z = torch.tensor([CIRCLE])
    got = code_idm(z, steps, 64, margin=margin, backend=backend)
    assert got.item() == pytest.approx(value, rel=1e-6, abs=1e-7)
    assert idm_loop(CIRCLE, steps, 64, margin) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
def test_gradient_at_the_edge_of_the_window_and_at_the_margin(backend):
    # Only (0, 1) attracts, with twice |z0 - z1|^2: 4 (z0 - z1). Pairs at the margin have no
    # gradient.
    z = torch.tensor([CIRCLE], requires_grad=True)
    code_idm(z, [0, 10, 30], 64, margin=2.0, backend=backend).backward()
    assert z.grad[0].tolist() == [[4.0, -4.0], [-4.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
def test_one_frame(backend, dtype, rel):
    """The pair with itself is near and has distance 0; the only path is one cell."""
    x, y = (torch.tensor([[frame]], dtype=dtype) for frame in ([1.0, 0.0], [0.6, 0.8]))
    assert code_idm(x, [7], 60, backend=backend) == 0
    steps = torch.tensor([7])
    kw = {"duration_x": 60, "duration_y": 45, "form": "code", "backend": backend}
    got = fastseq.lav_loss(x, y, steps, steps, **kw)
    assert got.item() == pytest.approx(0.16 + 0.64, rel=rel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
def test_two_frames_by_hand(backend, dtype, rel):
    """Videos of 64 and 32 frames that show the same two pictures; all values in closed form."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=dtype)
    gamma, alpha = 0.5, 0.25
    # Costs are 0 on the diagonal and 2 elsewhere: one path of cost 0, two of cost 2.
    align = -gamma * math.log(1 + 2 * math.exp(-2 / gamma))
    # First video: a gap of 10, at the edge: near, 2 each way. Second: a gap of 12: far, at the
    # margin: 0.
    want = (align + alpha * (4.0 + 0.0)) / 2
    got = fastseq.lav_loss(
        x,
        x.clone(),
        torch.tensor([3, 13]),
        torch.tensor([4, 16]),
        duration_x=64,
        duration_y=32,
        gamma=gamma,
        alpha=alpha,
        form="code",
        backend=backend,
    )
    assert got.item() == pytest.approx(want, rel=10 * rel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_pairs_of_different_durations_equal_the_loops(backend, dtype, rel):
    """Times as segment sampling draws them, including gaps of exactly the window in every video."""
    x, y = unit(4, 20, 16, seed=0, dtype=dtype), unit(4, 20, 16, seed=1, dtype=dtype)
    durations = [(200, 200), (211, 97), (60, 1003), (480, 353)]
    rng = np.random.default_rng(0)
    tx, ty = (np.stack([_steps(rng, pair[side]) for pair in durations]).tolist() for side in (0, 1))
    ties = 0
    for n, (steps, (duration, _)) in enumerate(zip(tx, durations, strict=True)):
        gaps = np.abs(np.subtract.outer(steps, steps))
        ties += int((gaps == SIGMA).sum())
        assert gaps.max() < duration, n
    assert ties > 8
    # A distance of exactly the margin: two frames at a right angle, far apart in time.
    for z in (x, y):
        z[0, 0], z[0, 15] = torch.eye(16, dtype=dtype)[:2]
    got = fastseq.lav_loss(
        x,
        y,
        torch.tensor(tx),
        torch.tensor(ty),
        duration_x=[a for a, _ in durations],
        duration_y=[b for _, b in durations],
        form="code",
        reduction="none",
        backend=backend,
    )
    for n, (a, b) in enumerate(durations):
        want = lav_loop(x[n].tolist(), y[n].tolist(), tx[n], ty[n], a, b)
        assert got[n].item() == pytest.approx(want, rel=rel), n


def _steps(rng, duration):
    """One random frame in each of 20 chunks; frames 1 to 3 are ten apart."""
    edges = np.linspace(0, duration, 21).astype(int)
    steps = [int(rng.integers(a, b)) for a, b in itertools.pairwise(edges)]
    steps[1:4] = [steps[0] + 10, steps[0] + 20, steps[0] + 30]
    return np.sort(steps)
