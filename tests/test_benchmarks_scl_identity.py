"""The benchmark of scl_loss with an identity target: peers compute the same function, memeff's
kernels interpreted. Tiny shapes; speed is not tested.
"""

import sys

import pytest
import torch

from benchmarks import gate, results, run, scl_identity, scl_identity_peers
from benchmarks.case import Case, Unavailable, build
from benchmarks.gpu import bench, environment, problems
from benchmarks.memory import cpu_peak_mb
from benchmarks.scl_peers import TEMPERATURE, dense_lse
from benchmarks.timing import gradients

CASE = Case(1, 70, 32)
ON_GPU = CASE._replace(device="cuda")


@pytest.fixture(scope="module")
def problem():
    args = scl_identity.inputs(CASE)
    return args, scl_identity.expected(CASE, args)


def compare(fn, args, want, tolerance=1e-6):
    loss = fn(*args)
    assert gate.relative(loss.detach(), want[0]) < tolerance
    for got, right in zip(gradients(loss, args, 1.0), want[1:], strict=True):
        assert gate.relative(got, right) < tolerance


def flex_with_dense_softmax(z1, z2):
    return scl_identity_peers.flex(z1, z2, lse=dense_lse)


@pytest.mark.parametrize("peer", [scl_identity_peers.eager, flex_with_dense_softmax])
def test_peers_compute_the_loss(problem, peer):
    compare(peer, *problem)


def test_the_target_is_exactly_the_identity(problem):
    """The next frame is out of reach: where every row's nearest is 1 away, no row has a target."""
    fn = scl_identity.providers("cpu")[0].build(CASE)
    t = 10 * torch.arange(CASE.t)
    assert fn(*problem[0], t, t + 1) == 0
    assert fn(*problem[0], t, t).item() == pytest.approx(problem[1][0].item())


def test_expected_is_the_same_dense_and_blockwise(problem, monkeypatch):
    args, want = problem
    monkeypatch.setattr("benchmarks.scl.dense", lambda case: False)
    for a, b in zip(scl_identity.expected(CASE, args), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)


@pytest.fixture
def clip_loss(monkeypatch):
    """memeff's module with its CLIP loss, made to accept tensors on a CPU."""
    reason = 'needs memeff: pip install "fastseq[bench]"'
    pytest.importorskip("memeff", reason=reason)
    from memeff import _common
    from memeff import clip_loss as module

    monkeypatch.setattr(_common, "INPUT_PRECISION", "ieee")  # as build_memeff reads it
    monkeypatch.setattr(module, "_validate_features", lambda x, y: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return module


@pytest.mark.interpreter
@pytest.mark.parametrize("one_program_a_row_block", [True, False])
@pytest.mark.parametrize("shape", [(1, 70, 32), (1, 130, 96)])
def test_memeff_computes_the_loss(clip_loss, monkeypatch, shape, one_program_a_row_block):
    """Both of its backward kernels. In float32, in which the interpreter multiplies correctly."""
    if torch.cuda.is_available():
        pytest.skip("interprets memeff's kernels; on a GPU the benchmark itself checks them")
    monkeypatch.setattr(clip_loss, "_FORCE_FA", one_program_a_row_block)
    case = Case(*shape)
    args = scl_identity.inputs(case)
    peer = scl_identity_peers.build_memeff(case._replace(device="cuda"))
    compare(peer, args, scl_identity.expected(case, args))


@pytest.mark.interpreter
def test_the_gate_refuses_memeffs_stable_gradient(clip_loss):
    """Its default multiplies the gradient by sqrt(rows temperature), here 2.6."""
    if torch.cuda.is_available():
        pytest.skip("interprets memeff's kernels")
    from memeff import MemoryEfficientCLIPLoss

    args = scl_identity.inputs(CASE)
    provider = scl_identity.providers("cuda")[-1]
    assert provider.name == "memeff"
    loss = MemoryEfficientCLIPLoss(temperature=TEMPERATURE)
    with pytest.raises(gate.WrongResult, match=r"memeff at 1x70x32-fp32: relative error 1\.6 "):
        gate.gate(
            provider,
            CASE,
            lambda z1, z2: loss(z1[0], z2[0]),
            args,
            scl_identity.expected(CASE, args),
        )


def test_memeff_says_where_it_cannot_be_compared(clip_loss):
    for case, reason in (
        (CASE, "accepts only CUDA tensors"),
        (ON_GPU._replace(n=2), "only N = 1"),
        (ON_GPU._replace(precision="tf32"), "for tf32 set MEMEFF_INPUT_PRECISION=tf32"),
    ):
        with pytest.raises(Unavailable, match=reason):
            scl_identity_peers.build_memeff(case)


def test_a_missing_memeff_is_an_empty_column_with_a_note(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "memeff", None)
    reason = r'memeff is not installed: pip install "fastseq\[bench\]"'
    with pytest.raises(Unavailable, match=reason):
        scl_identity_peers.build_memeff(ON_GPU)
    names = ["fastseq torch", "eager", "memeff"]
    rows, wrong = run.run_case(
        "scl_identity", CASE, tmp_path, budget_s=0.01, names=names, memory=False
    )
    assert not wrong
    text = results.table([dict.fromkeys(results.COLUMNS, "") | row for row in rows])
    assert "- memeff at (1, 70, 32): memeff accepts only CUDA tensors" in text
    assert {row["mode"] for row in rows} == set(scl_identity.MODES)


def test_eager_needs_no_more_than_it_says():
    case = Case(1, 1024, 16)
    eager = next(p for p in scl_identity.providers("cpu") if p.name == "eager")
    needed = eager.bytes_needed(case) / 1e6
    assert needed / 2 < cpu_peak_mb("scl_identity", case, "eager") < 1.05 * needed
    with pytest.raises(Unavailable, match=r"needs about \d+ GB"):
        build(eager._replace(cpu_pairs=1 << 62), Case(1, 1 << 18, 16))


def test_a_gpu_call_measures_memeff_at_the_shape_that_it_publishes(monkeypatch):
    monkeypatch.setenv("DRY", "0")
    wanted = [w for w in bench.plan() if w.op == "scl_identity"]
    assert [(w.shape, w.precision, w.peers) for w in wanted] == [
        ((1, 65536, 384), "bf16", ("memeff",))
    ]
    assert wanted[0].op in problems.TINY  # compiled in advance
    assert "memeff" in environment.PACKAGES
