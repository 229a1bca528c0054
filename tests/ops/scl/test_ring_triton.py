"""The parts of a split scl_loss with the Triton kernels, interpreted on machines without a GPU."""

import math

import pytest
import torch
from tolerance import as_accurate_as, interpreted

from fastseq.ops.common.lengths import valid_mask
from fastseq.ops.scl import triton as scl_triton
from fastseq.ops.scl.options import TARGETS, SCLOptions, log_target, reach
from fastseq.ops.scl.ring import triton as ring
from fastseq.ops.scl.ring.options import Side, Weights
from ops.scl.test_triton import DEVICE, EXPONENT, randint, randn, run

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("one_thread", "nan_empty"),
    # NumPy warns about infinities and NaN, which masked entries contain on purpose.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def options(**changes):
    return SCLOptions(10.0, 0.1, True, "kl", "cross", "sum")._replace(**changes)


def real(side):
    return valid_mask(side.valid, *side.z.shape[:2], side.z.device)


def side(n, frames, d=16, seed=0, t=None, valid=None, dtype=torch.float32):
    z = randn(n, frames, d, seed=seed).to(dtype)
    t = torch.arange(frames).expand(n, frames) if t is None else t
    return Side(*(x if x is None else x.to(DEVICE) for x in (z, t, valid)))


def cut(side, sizes):
    """The frames of a side in blocks. Lengths become masks."""
    parts = [side.z.split(sizes, 1), side.t.split(sizes, 1), real(side).split(sizes, 1)]
    return [Side(z.contiguous(), t, m) for z, t, m in zip(*parts, strict=True)]


def dense(rows, columns, opts, tau=None, var=None, near=True, dtype=torch.float64):
    """Scores, log g, and which pairs exist and have a target, in plain PyTorch."""
    z1, z2 = rows.z.to(dtype), columns.z.to(dtype)
    if opts.normalize:
        z1, z2 = (torch.nn.functional.normalize(z, dim=-1) for z in (z1, z2))
    s = z1 @ z2.mT / (opts.temperature if tau is None else tau.to(dtype))
    pairs = (real(rows)[:, :, None] & real(columns)[:, None]).expand(s.shape)
    if not near:
        return s, s * 0, pairs, pairs & False
    variance = opts.variance if var is None else var.to(dtype)
    gap = (rows.t[:, :, None].double() - columns.t[:, None].double()).to(dtype)
    return (
        s,
        log_target(gap, variance, opts.target),
        pairs,
        pairs & (gap.abs() <= reach(variance, opts.target)),
    )


def plain_statistics(rows, columns, opts, **kwargs):
    """Log-denominators, log G, and the mean over g of s - log g ("ce": of s)."""
    s, e, pairs, within = dense(rows, columns, opts, **kwargs)
    lse = s.masked_fill(~pairs, -torch.inf).logsumexp(2)
    log_g = e.masked_fill(~within, -torch.inf).logsumexp(2)
    w = (e - log_g[..., None]).exp().masked_fill(~within, 0)
    mean = (w * (s - e if opts.objective == "kl" else s)).sum(2)
    return lse, log_g, mean


def joined(parts):
    """Statistics over the columns of all parts."""
    lse, log_g, mean = (torch.stack(x).double() for x in zip(*parts, strict=True))
    total = log_g.logsumexp(0)
    share = (log_g - total).exp().nan_to_num(0)
    return lse.logsumexp(0), total, (share * mean).sum(0)


def offset(opts):
    """The logarithm of the kernels' factor of g."""
    return 32 * math.log(2) if opts.target == "gauss" else 0.0


def check_statistics(rows, columns, opts, *splits, **scalars):
    """For each way to split the columns, the statistics of the blocks joined."""
    tau, var = scalars.get("tau"), scalars.get("var")
    want = plain_statistics(rows, columns, opts, **scalars)
    plain = plain_statistics(rows, columns, opts, dtype=torch.float32, **scalars)
    some = real(rows) & (want[1] > -torch.inf)
    for sizes in splits:
        blocks = cut(columns, sizes)
        got = joined([ring.statistics(rows, c, tau, var, opts, True) for c in blocks])
        assert ((got[1] > -torch.inf) == some)[real(rows)].all()
        assert (got[2][real(rows) & ~some] == 0).all()
        mean = got[2] + offset(opts) * (opts.objective == "kl")
        got = got[0], got[1] - offset(opts), mean
        for x, y, z, what in zip(got, plain, want, ("lse", "log G", "mean"), strict=True):
            # Of the mean and log G only the sum matters, in which the offset, up to 22, cancels.
            as_accurate_as(x[some], y[some], z[some], floor=EXPONENT, what=(what,))


def weights(rows, columns, opts, seed=0, **kwargs):
    """Weights of rows and columns from plain statistics, as if each had only these counterparts."""
    result = []
    near = kwargs.get("near", True)
    for k, (a, b) in enumerate(((rows, columns), (columns, rows))):
        lse, log_g, _ = plain_statistics(a, b, opts, **kwargs)
        w = (2 * torch.rand(lse.shape, generator=torch.Generator().manual_seed(seed + k)) - 1).to(
            lse
        )
        w = w * (real(a) & ((log_g > -torch.inf) if near else torch.isfinite(lse)))
        target = torch.where(w == 0, 0, w * (-log_g - offset(opts)).exp()) if near else None
        lse = lse.masked_fill(w == 0, 1e30)
        result.append(Weights(*(x if x is None else x.float() for x in (lse, w, target))))
    return result


def plain_gradient(rows, columns, of_rows, of_columns, opts, dtype=torch.float64, **kwargs):
    """The gradient of the rows and the sums of scores times gradients, through autograd."""
    z = rows.z.to(dtype).requires_grad_()
    s, e, pairs, within = dense(rows._replace(z=z), columns, opts, dtype=dtype, **kwargs)
    a, b = (Weights(*(x if x is None else x.to(dtype) for x in w)) for w in (of_rows, of_columns))
    q = a.weight[..., None] * (s - a.lse[..., None]).exp()
    q = q + b.weight[:, None] * (s - b.lse[:, None]).exp()
    if kwargs.get("near", True):
        g = (e + offset(opts)).exp().masked_fill(~within, 0)
        q = q - g * (a.target[..., None] + b.target[:, None])
    q = q.detach().masked_fill(~pairs, 0)
    (dz,) = torch.autograd.grad((q * s).sum(), z)
    return dz, (q * s.detach()).sum(2)


def cut_weights(w, sizes):
    parts = [x.split(sizes, 1) if x is not None else [None] * len(sizes) for x in w]
    return [Weights(*part) for part in zip(*parts, strict=True)]


def check_gradient(rows, columns, opts, *splits, near=True, floor=None, **scalars):
    tau, var = scalars.get("tau"), scalars.get("var")
    kwargs = {"near": near, **scalars}
    of_rows, of_columns = weights(rows, columns, opts, **kwargs)
    every = rows, columns, of_rows, of_columns, opts
    want = plain_gradient(*every, **kwargs)
    plain = plain_gradient(*every, dtype=torch.float32, **kwargs)
    top = torch.tensor(0.5, device=DEVICE)
    assert of_rows.weight.any()
    assert want[0].any()
    for sizes in splits:
        total = torch.zeros(rows.z.shape, dtype=torch.float32, device=DEVICE)
        along = 0
        for c, w in zip(cut(columns, sizes), cut_weights(of_columns, sizes), strict=True):
            along += ring.add_gradient(total, rows, c, of_rows, w, tau, var, opts, near, True)
        got = ring.finish(total, rows, top, opts)
        assert got.dtype == rows.z.dtype
        assert (got[~real(rows)] == 0).all()
        floor = EXPONENT if floor is None and got.dtype == torch.float32 else floor
        rounded = (plain[0] / 2).to(got.dtype)
        as_accurate_as(got, rounded, want[0] / 2, floor=floor, what=("dz",))
        # Gradients of scores cancel in this sum of large numbers.
        size = want[1].norm() + want[0].norm()
        assert (along.double() - want[1]).norm() <= 10 * (floor or 1e-2) * size


def check(rows, columns, opts, *splits, **kwargs):
    floor = kwargs.pop("floor", None)
    check_statistics(rows, columns, opts, *splits, **kwargs)
    check_gradient(rows, columns, opts, *splits, floor=floor, **kwargs)


BLOCKS = [[70], [3, 67], [0, 30, 33, 1, 6]]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_blocks_of_columns(target, objective):
    """One, two and five uneven blocks. Unsorted and repeated times, masks, isolated rows."""
    t1, t2 = randint(0, 400, 2, 97, seed=3), randint(0, 400, 2, 70, seed=4)
    rows = side(2, 97, seed=1, t=t1, valid=torch.tensor([97, 30]))
    columns = side(2, 70, seed=2, t=t2, valid=randint(0, 3, 2, 70, seed=5) > 0)
    opts = options(target=target, objective=objective, variance=40.0)
    if objective == "kl":
        check(rows, columns, opts, *(BLOCKS if target == "gauss" else BLOCKS[1:2]))
    else:  # with a running maximum
        check(rows, columns, opts._replace(temperature=0.01), BLOCKS[2], floor=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_channels(dtype):
    for d, normalize in ((17, True), (64, False)):
        rows, columns = side(1, 65, d, seed=1, dtype=dtype), side(1, 70, d, seed=2, dtype=dtype)
        opts = options(normalize=normalize, temperature=0.1 if normalize else 20.0)
        check(rows, columns, opts, [33, 37], floor=interpreted(dtype, DEVICE))


def test_scalars_in_tensors():
    rows, columns = side(2, 33, seed=1), side(2, 70, seed=2)
    scalars = {"tau": torch.tensor(0.07, device=DEVICE), "var": torch.tensor(25.0, device=DEVICE)}
    for target in ("gauss", "sigmoid"):
        opts = options(temperature=1.0, variance=1.0, target=target)
        check(rows, columns, opts, [40, 30], **scalars)


@pytest.mark.parametrize("valid", [None, torch.tensor([64, 3, 0])])
def test_additional_negatives(valid):
    """Columns without times and targets: the softmax alone, also in a tile that is not full."""
    rows = side(3, 65, seed=1)._replace(t=None)
    columns = side(3, 70, seed=2, valid=valid)._replace(t=None)
    for opts in (options(), options(temperature=0.01, target="sigmoid")):
        got = ring.statistics(rows, columns, None, None, opts, False)
        assert got[1:] == (None, None)
        want = plain_statistics(rows, columns, opts, near=False)[0]
        plain = plain_statistics(rows, columns, opts, near=False, dtype=torch.float32)[0]
        some = want > -torch.inf
        as_accurate_as(got[0][some], plain[some], want[some])
        assert (got[0][~some] <= -1e30).all()
        columns = columns._replace(t=torch.arange(70).expand(3, 70))
        check_gradient(rows, columns, opts, [70], near=False, floor=1e-5)
        columns = columns._replace(t=None)


def test_steps_and_chunks_of_channels(monkeypatch):
    """Sums of scores times gradients are then partial sums of the tiles."""
    tile = scl_triton.Tiles(32, 16, 32, 64, 4, 1)
    monkeypatch.setattr(scl_triton, "tiles", lambda *_: tile)
    scl_triton.launch.clear()
    rows, columns = side(1, 33, 70, seed=1), side(1, 40, 70, seed=2)
    check(rows, columns, options(), [10, 30])
    scl_triton.launch.clear()


@pytest.mark.parametrize("target", TARGETS)
def test_far_neighbours_in_another_block(target):
    """The nearest frame is 0 to 46 frames away, the next one in another block: offsets of the
    exponents differ between the two calls."""
    gaps = torch.tensor([0, 20, 45, 46])
    rows = side(4, 1, 8, seed=1, t=torch.zeros(4, 1))
    columns = side(4, 3, 8, seed=2, t=torch.stack([gaps, gaps + 1, -gaps], 1).float())
    opts = options(target=target, variance=400.0 if target == "box" else 10.0)
    check_statistics(rows, columns, opts, [3], [1, 1, 1])
    check_gradient(rows, columns, opts, [3], [1, 1, 1])


def one_process(z1, z2, t1, t2, valid1, valid2, opts, sizes1, sizes2):
    """Sum of all rows' losses and its gradients by the parts, columns in blocks."""
    sides = Side(z1, t1, valid1), Side(z2, t2, valid2)
    blocks = cut(sides[0], sizes1), cut(sides[1], sizes2)
    loss, of_sides = 0, []
    for k in (0, 1):
        parts = [ring.statistics(sides[k], c, None, None, opts, True) for c in blocks[1 - k]]
        lse, log_g, mean = joined(parts)
        some = real(sides[k]) & (log_g > -torch.inf)
        loss += (lse - mean - (log_g if opts.objective == "kl" else 0))[some].sum()
        w = some.float()
        target = torch.where(some, (-log_g).exp(), 0).float()
        of_sides.append(Weights(lse.masked_fill(~some, 1e30).float(), w, target))
    grads = []
    for k, sizes in ((0, sizes2), (1, sizes1)):
        total = torch.zeros(sides[k].z.shape, dtype=torch.float32, device=DEVICE)
        of_blocks = cut_weights(of_sides[1 - k], sizes)
        for c, w in zip(blocks[1 - k], of_blocks, strict=True):
            args = total, sides[k], c, of_sides[k], w, None, None, opts, True, False
            assert ring.add_gradient(*args) is None
        grads.append(ring.finish(total, sides[k], torch.ones((), device=DEVICE), opts))
    return loss, *grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_directions_equal_the_whole_loss(dtype):
    n, d = 2, 32
    z1, z2 = (randn(n, t, d, seed=t).to(dtype).to(DEVICE) for t in (70, 97))
    t1, t2 = (torch.arange(t, device=DEVICE).repeat(n, 1) + 10**12 for t in (70, 97))
    lengths1 = torch.tensor([70, 40], device=DEVICE)
    opts = options()
    args = z1.double(), z2.double(), t1, t2
    kwargs = {"lengths1": lengths1, "reduction": "sum"}
    want = run(*args, dtype=torch.float64, backend="reference", **kwargs)
    whole = run(*args, dtype=dtype, **kwargs)
    got = one_process(z1, z2, t1, t2, lengths1, None, opts, [64, 0, 6], [50, 47])
    floor = interpreted(dtype, DEVICE) or (EXPONENT if dtype == torch.float32 else None)
    as_accurate_as(got, whole, want, floor=floor)


def test_nan_in_a_timestamp_is_not_hidden():
    """All statistics of its own row are NaN, and log-denominators of all rows for its column; in
    padding NaN has no effect."""
    rows, columns = side(2, 40, 8, seed=1), side(2, 70, 8, seed=2)
    columns = columns._replace(valid=torch.tensor([70, 60], device=DEVICE))
    bad = torch.arange(40.0, device=DEVICE).repeat(2, 1)
    bad[0, 3] = math.nan
    opts = options()
    for x in ring.statistics(rows._replace(t=bad), columns, None, None, opts, True):
        assert (x.isnan() == bad.isnan()).all()
    bad = torch.arange(70.0, device=DEVICE).repeat(2, 1)
    bad[:, 65] = math.nan
    lse, log_g, _ = ring.statistics(rows, columns._replace(t=bad), None, None, opts, True)
    assert lse[0].isnan().all()
    assert not lse[1].isnan().any()
    assert not log_g.isnan().any()


def test_frames_that_are_not_real_have_no_gradient():
    """Whatever the upstream gradient is."""
    rows = side(2, 5, 8, valid=torch.tensor([5, 2], device=DEVICE))
    total = torch.ones(2, 5, 8, device=DEVICE) * real(rows)[..., None]
    got = ring.finish(total, rows, torch.tensor(math.nan, device=DEVICE), options())
    assert (got.isnan() == real(rows)[..., None]).all()
    assert (got[~real(rows)] == 0).all()


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(("n", "frames1", "frames2"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (1, 0, 0)])
def test_no_frames(n, frames1, frames2, near):
    rows, columns = side(n, frames1, 8), side(n, frames2, 8)
    lse, log_g, mean = ring.statistics(rows, columns, None, None, options(), near)
    assert lse.shape == (n, frames1)
    assert (lse <= -1e30).all()
    assert not near or ((log_g == -torch.inf).all() and (mean == 0).all())
    total = torch.full((n, frames1, 8), 3.0, device=DEVICE)
    zeros = [Weights(*(torch.zeros(n, t, device=DEVICE),) * 3) for t in (frames1, frames2)]
    along = ring.add_gradient(total, rows, columns, *zeros, None, None, options(), near, True)
    assert (total == 3).all()
    assert along.shape == (n, frames1)
    assert (along == 0).all()
    assert ring.finish(total, rows, torch.tensor(2.0, device=DEVICE), options()).eq(6).all()


def test_an_invalid_temperature_or_variance_makes_the_statistics_nan():
    rows, columns = side(1, 5, 8, seed=1), side(1, 6, 8, seed=2)
    one, bad = torch.ones((), device=DEVICE), -torch.ones((), device=DEVICE)
    for tau, var in ((bad, one), (one, bad)):
        for x in ring.statistics(rows, columns, tau, var, options(), True):
            assert x.isnan().all()
