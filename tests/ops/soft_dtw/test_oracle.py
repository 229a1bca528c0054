"""Every backend on the reference cases of tests/data/soft_dtw, at the thresholds given there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fastseq
from ops.soft_dtw.cases import backends, relative, value_and_alignment, value_and_grads

pytestmark = pytest.mark.sweep

DATA = Path(__file__).parents[2] / "data" / "soft_dtw"
PAIRS = [
    path.stem for path in sorted(DATA.glob("*.npz")) if path.stem[:2] not in ("21", "22", "25")
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def check_value(name, value, want, dtype, backend):
    error = np.abs(np.asarray(value, np.float64) - want)
    if dtype == torch.float64:
        assert (error <= 1e-13 * np.abs(want)).all()
    elif name.startswith("13"):
        # The costs on the diagonal are 0, so the sum over 50 cells is of -log2(1 + small). The
        # torch backend rounds each 1 + small first; with exact functions this alone has an error of
        # 7.7e-7.
        assert error <= (1e-6 if backend == "torch" else 5e-7)
    else:
        assert (error <= 5e-7 * np.abs(want)).all()


def check_alignment(name, got, want, dtype):
    allowed = 2e-5
    if dtype == torch.float64:
        allowed = 1e-9 if name.startswith("10") else 1e-12
    assert np.abs(np.asarray(got, np.float64) - want).max() <= allowed


def test_all_cases_are_here():
    assert len(PAIRS) == 10


@DTYPES
@pytest.mark.parametrize("name", PAIRS)
@backends()
def test_costs(backend, name, dtype):
    case = load(name)
    if "D" not in case:
        case["D"] = ((case["X"][:, None] - case["Y"]) ** 2).sum(-1)
    options = {"gamma": float(case["gamma"]), "backend": backend}
    value, expected = value_and_alignment(torch.tensor(case["D"], dtype=dtype), **options)
    assert (value.dtype, expected.dtype) == (dtype, dtype)
    check_value(name, value, case["value"], dtype, backend)
    check_alignment(name, expected, case["grad_D"], dtype)


@DTYPES
@pytest.mark.parametrize("name", [name for name in PAIRS if "X" in load(name)])
@backends()
def test_embeddings(backend, name, dtype):
    case = load(name)
    x, y = (torch.tensor(case[key], dtype=dtype) for key in "XY")
    options = {"gamma": float(case["gamma"]), "backend": backend}
    value, dx, dy = value_and_grads(x, y, **options)
    check_value(name, value, case["value"], dtype, backend)
    allowed = 1e-12 if dtype == torch.float64 else 1e-5
    assert relative(dx, case["grad_X"]) <= allowed
    assert relative(dy, case["grad_Y"]) <= allowed
    expected = fastseq.soft_dtw_alignment(x, y, **options)
    check_alignment(name, expected, case["grad_D"], dtype)


@DTYPES
@backends()
def test_padded_batch(backend, dtype):
    (path,) = DATA.glob("21*.npz")
    case = load(path.stem)
    x, y = (torch.tensor(case[key], dtype=dtype) for key in "XY")
    options = {
        "gamma": float(case["gamma"]),
        "lengths_x": torch.tensor(case["len_x"]),
        "lengths_y": torch.tensor(case["len_y"]),
        "backend": backend,
    }
    value, dx, dy = value_and_grads(x, y, **options)
    check_value(path.stem, value, case["value"], dtype, backend)
    expected = fastseq.soft_dtw_alignment(x, y, **options)
    check_alignment(path.stem, expected, case["grad_D"], dtype)
    for got, want in ((dx, case["grad_X"]), (dy, case["grad_Y"]), (expected, case["grad_D"])):
        assert relative(got, want) <= (1e-12 if dtype == torch.float64 else 1e-5)
        assert (np.asarray(got)[want == 0] == 0).all()


@DTYPES
@backends()
def test_divergence(backend, dtype):
    (path,) = DATA.glob("22*.npz")
    case = load(path.stem)
    x, y = (torch.tensor(case[key], dtype=dtype) for key in "XY")
    for gamma in (0.1, 1.0, 10.0):
        options = {"gamma": gamma, "divergence": True, "backend": backend}
        value, dx, _ = value_and_grads(x, y, **options)
        check_value(path.stem, value, case[f"div_sq_value_g{gamma}"], dtype, backend)
        allowed = 1e-12 if dtype == torch.float64 else 1e-5
        assert relative(dx, case[f"div_sq_grad_X_g{gamma}"]) <= allowed


@DTYPES
@backends()
def test_hard_limit(backend, dtype):
    (path,) = DATA.glob("25*.npz")
    case = load(path.stem)
    x, y = (torch.tensor(case[key], dtype=dtype) for key in "XY")
    for gamma in ("0.1", "0.01", "0.001", "0.0001", "1e-06"):
        value = fastseq.soft_dtw(x, y, gamma=float(gamma), backend=backend)
        check_value(path.stem, value, case[f"soft_g{gamma}"], dtype, backend)
    assert fastseq.dtw_path(x.double(), y.double())[1] == pytest.approx(case["hard_sq"], rel=1e-6)
