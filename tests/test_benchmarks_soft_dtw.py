"""The Soft-DTW benchmark: peers compute the same function, the expected values equal the reference,
floors equal those of the derivation. Tiny shapes; speed is not tested.
"""

import importlib.util
import sys

import pytest

import fastseq
from benchmarks import gate, results, run, soft_dtw, soft_dtw_peers
from benchmarks.case import Case, Provider, Unavailable, build
from benchmarks.floors import PEAKS, floor_seconds
from benchmarks.timing import gradients

CASE = Case(3, 37, 16)


@pytest.fixture(scope="module")
def problem():
    args = soft_dtw.inputs(CASE)
    return args, soft_dtw.expected(CASE, args)


def test_expected_is_the_reference(problem):
    args, want = problem
    x, y = (z.detach().double().requires_grad_() for z in args)
    loss = fastseq.soft_dtw(x, y, gamma=0.1, reduction="sum", backend="reference")
    for got, expected in zip(want, [loss, *gradients(loss, (x, y), 1.0)], strict=True):
        assert gate.relative(got, expected.detach()) < 1e-12


PACKAGES = {
    "pysdtw": "pysdtw",
    "tslearn": "tslearn",
    "ddtw": "ddtw",
    "ddtw, costs given": "ddtw",
    "sdtw-cuda-torch": "dtw_loss_functions",
    "pytorch-softdtw-cuda": "dtw_loss_functions",
}


def peer(name):
    return next(p for p in soft_dtw.providers("cpu") if p.name == name)


@pytest.mark.parametrize("name", ["wavefront", *PACKAGES])
def test_peers_compute_the_value(problem, name, monkeypatch):
    """numba would compile them for a quarter of a minute, so their loops run as plain Python here.
    How numba handles our arguments is checked by the benchmark, which also compares values.
    """
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed: pip install "fastseq[bench]"')
    provider = peer(name)
    fn = build(provider, CASE)
    if package:
        assert interpret(monkeypatch, package) >= 2  # forward and backward
    assert gate.gate(provider, CASE, fn, *problem) < 1e-3


def interpret(monkeypatch, package: str) -> int:
    """Return the number of the package's functions that numba no longer compiles."""
    from numba.core.dispatcher import Dispatcher

    found = [
        (module, name, value.py_func)
        for key, module in list(sys.modules.items())
        if key.split(".")[0] == package
        for name, value in list(vars(module).items())
        if isinstance(value, Dispatcher)
    ]
    for patch in found:
        monkeypatch.setattr(*patch)
    return len(found)


def test_wavefront_in_float64(problem):
    x, y = (z.detach().double().requires_grad_() for z in problem[0])
    loss = soft_dtw_peers.wavefront(x, y)
    for got, want in zip([loss.detach(), *gradients(loss, (x, y), 1.0)], problem[1], strict=True):
        assert gate.relative(got, want) < 1e-12


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_peer_is_an_empty_column_with_a_note(name, monkeypatch, tmp_path):
    package = PACKAGES[name]
    for module in (package, f"{package}.metrics", f"{package}.soft_dtw"):
        monkeypatch.setitem(sys.modules, module, None)
    provider = peer(name)
    package = package.replace("_", "-")
    with pytest.raises(Unavailable, match=rf'{package} is not installed: pip install "fastseq'):
        build(provider, CASE)
    # In this process, in which the import fails.
    present = [soft_dtw.providers("cpu")[0], provider._replace(own_process=False)]
    monkeypatch.setattr(soft_dtw, "providers", lambda device: present)
    rows, wrong = run.run_case("soft_dtw", CASE, tmp_path, budget_s=0.01, memory=False)
    assert not wrong
    text = results.table([dict.fromkeys(results.COLUMNS, "") | row for row in rows])
    assert f"| fastseq numba | {name} | % of floor |" in text
    assert f"- {name} at (3, 37, 16): {package} is not installed" in text
    assert "| 3, 37, 16 | both |" in text


@pytest.mark.parametrize(
    ("device", "reason"), [("cpu", "has only a CUDA backend"), ("cuda", "another function")]
)
def test_a_peer_that_cannot_be_compared_says_why(device, reason):
    provider = next(p for p in soft_dtw.providers(device) if p.name == "flash-softdtw")
    with pytest.raises(Unavailable, match=reason):
        provider.build(Case(*CASE[:3], device=device))


def test_gate_allows_a_poor_gradient_but_no_other_value(problem):
    args, want = problem

    def blurred(x, y):
        value = soft_dtw_peers.wavefront(x, y)
        return value + 0.1 * (value - value.detach())  # only the gradient is wrong, by 10 %

    def other(x, y):
        return 1.01 * soft_dtw_peers.wavefront(x, y)

    def provide(fn):
        return Provider("peer", lambda case: fn, gradient_tolerance=soft_dtw.LOST_DIGITS)

    assert gate.gate(provide(blurred), CASE, blurred, args, want) == pytest.approx(0.1, rel=0.01)
    with pytest.raises(gate.WrongResult, match=r"relative error 0\.1 "):
        gate.gate(provide(blurred)._replace(gradient_tolerance=0.0), CASE, blurred, args, want)
    with pytest.raises(gate.WrongResult, match=r"relative error 0\.01 .* allowed 0\.0001"):
        gate.gate(provide(other), CASE, other, args, want)


def test_gate_sees_nan_in_the_second_gradient(problem):
    def spoiled(x, y):
        return soft_dtw_peers.wavefront(x, y) + 0 * (y - y.detach()).abs().sqrt().sum()

    provider = Provider("spoiled", lambda case: spoiled)
    dx, dy = gradients(spoiled(*problem[0]), problem[0], 1.0)
    assert dx.isfinite().all()
    assert dy.isnan().any()
    with pytest.raises(gate.WrongResult, match="relative error nan"):
        gate.gate(provider, CASE, spoiled, *problem)


@pytest.mark.parametrize(
    ("shape", "mode", "us"),
    [
        ((4, 480, 128), "forward", 97 * 959 / 1980),  # 97 clocks a step at 1.98 GHz: 47 us
        ((4, 480, 128), "both", 142 * 959 / 1980),  # 69 us
        ((1, 4096, 128), "both", 142 * 8191 / 1980),
        # 4 products, each as 3 TF32 products; 7 special functions, 5 instructions around each.
        (
            (8, 16384, 128),
            "both",
            8 * 16384**2 * (4 * 256 * 3 / 395e6 + 7 / 4.18176e6 + 35 / 33.45408e6),
        ),
    ],
)
def test_floor_on_an_h200(shape, mode, us):
    case = Case(*shape, "fp32", "cuda")
    floor = floor_seconds(soft_dtw.work(case, mode), "fp32", PEAKS["NVIDIA H200"])
    assert floor * 1e6 == pytest.approx(us, rel=1e-3)


def test_inputs_are_unit_vectors_and_differ():
    x, y = soft_dtw.inputs(CASE)
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-6
    assert not x.equal(y)
    assert not x.equal(soft_dtw.inputs(CASE, seed=1)[0])
    assert x.requires_grad
    assert y.requires_grad
