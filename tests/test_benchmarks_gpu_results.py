"""How a GPU call presents its results: summary, pages, predictions, lengths of a training step."""

import importlib
import json

import pytest
import torch

from benchmarks.gpu import pages, profile, record, sanitize, summary
from benchmarks.gpu import tests as tests_phase

MACHINE = {
    "card": "NVIDIA H100 80GB HBM3",
    "driver": "580.1",
    "torch": "2.13.0",
    "triton": "3.7.1",
    "commit": "abc1234",
    "slug": "nvidia-h100-80gb-hbm3",
}


def said(phase: str, name: str, ok: bool | None = True, **fields) -> dict:
    return {"phase": phase, "name": name, "ok": ok, **fields}


LINES = [
    said("machine", "environment", **MACHINE),
    said("smoke", "scl a", loss_error="1e-7", gradient_error="2e-7", same_bits=True, first_s=1.0),
    said("smoke", "tcc b", False, loss_error="1e-7", gradient_error="2e-7", same_bits=False),
    said("bench", "scl c", op="scl", shape=[8, 480, 128], precision="bf16", both_us=40.0),
    said("bench", "scl d", None, error="no time left"),
    said("bench", "scl e", None, error="no time left"),
    said(
        "bench", "tcc f", False, op="tcc", shape=[1, 2, 3], precision="bf16", note="WRONG: loss 0.5"
    ),
]


def test_summary_names_what_failed_and_what_was_not_run(tmp_path):
    wanted = {"phases": ("smoke", "bench"), "dry": False, "budget_s": 420}
    text = summary.text(LINES, tmp_path, ["memcheck: ERROR SUMMARY: 0 errors"], **wanted)
    assert "smoke: tcc b: loss_error 1e-7, gradient_error 2e-7, same_bits False" in text
    assert "NO: a race" in text
    assert "bench: tcc f: WRONG: loss 0.5" in text
    assert "bench: no time left for scl d, scl e" in text
    assert "memcheck: ERROR SUMMARY: 0 errors" in text
    assert "REHEARSAL" not in text


def test_status_is_that_of_smoke_and_tests(tmp_path):
    path = tmp_path / record.LINES

    def status(*lines):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return summary.status(tmp_path, ("smoke", "bench"))

    assert status(said("smoke", "a"), said("bench", "b", False)) == 0
    assert status(said("smoke", "a"), said("smoke", "b", False)) == 1
    assert status(said("smoke", "a", None)) == 1  # nothing passed
    assert status() == 1


def test_a_page_keeps_the_sections_of_phases_that_did_not_run(tmp_path):
    out, folder = tmp_path / "out", tmp_path / "card"
    out.mkdir()
    pages.write(LINES, out, folder, ("smoke", "bench"), [])
    newer = [LINES[0] | {"commit": "def5678"}, said("bench", "x", False, error="lost")]
    pages.write(newer, out, folder, ("bench",), [])
    page = (folder / "first_contact.md").read_text()
    smoke, bench = page.index("## Smoke"), page.index("## Times")
    assert smoke < bench
    assert "commit abc1234" in page[smoke:bench]
    assert "commit def5678" in page[bench:]
    assert "bench: x: lost" in page[bench:]
    assert page.count("## Smoke") == 1
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert max(row.count("|") for row in rows) <= 5  # four columns


def test_a_report_that_pytest_could_not_write_is_read_from_its_log(tmp_path):
    (tmp_path / "tests.log").write_text(
        "[gw0] [  5%] PASSED tests/gpu/test_a.py::test_x\n"
        "[gw1] [ 10%] FAILED tests/gpu/test_a.py::test_y[1]\n"
        "tests/gpu/test_a.py::test_z SKIPPED (no)\n"
    )
    report = tests_phase.report(tmp_path)
    assert not report.whole
    assert report.counts == {"passed": 1, "failure": 1, "skipped": 1}
    assert report.bad == ["tests/gpu/test_a.py::test_y[1]"]


def test_half_a_line_is_passed_over(tmp_path):
    (tmp_path / record.LINES).write_text('{"phase": "a", "name": "b"}\n{"phase": "a", "na')
    assert record.read(tmp_path / record.LINES) == [{"phase": "a", "name": "b"}]


def test_a_lost_context_ends_a_process_and_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def wrong():
        raise ValueError("wrong")

    ran = []
    jobs = [record.Job("a", wrong), record.Job("b", lost), record.Job("c", lambda: ran.append(1))]
    with pytest.raises(SystemExit):
        record.attempt("bench", jobs)
    assert not ran
    assert [(line["name"], line["ok"]) for line in record.read(tmp_path / record.LINES)] == [
        ("a", False),
        ("b", False),
        ("c", None),
    ]


def test_ncu_s_metrics_are_read_from_its_csv():
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","scl_stats_kernel","Duration","us","21.5"\n'
        '"0","scl_stats_kernel","Registers Per Thread","register/thread","165"\n'
        '"0","scl_stats_kernel","Unknown","","1"\n'
        '"1","scl_grad_kernel","Duration","us","19"\n'
    )
    assert profile.launches(text) == [
        ("0 scl_stats_kernel", {"duration": "21.5 us", "registers": "165 register/thread"}),
        ("1 scl_grad_kernel", {"duration": "19 us"}),
    ]


def test_the_sanitizer_s_last_words(tmp_path):
    (tmp_path / "sanitize_memcheck.log").write_text("x\n========= ERROR SUMMARY: 3 errors\n")
    (tmp_path / "sanitize_racecheck.log").write_text("killed\n")
    assert sanitize.findings(tmp_path) == [
        "memcheck: ERROR SUMMARY: 3 errors",
        "racecheck: no summary",
    ]


def test_a_prediction_is_of_this_card_or_one_with_its_processors(tmp_path, monkeypatch):
    from benchmarks.case import Case
    from benchmarks.gpu import predictions

    path = tmp_path / "predicted.csv"
    path.write_text(
        "op,shape,dtype,mode,card,predicted_us,measured_us\n"
        "scl,8x480x128,bf16,both,NVIDIA H200,42,\n"
    )
    monkeypatch.setattr(predictions, "TABLE", path)
    predictions.table.cache_clear()
    case = Case(8, 480, 128, "bf16", "cuda")
    assert predictions.microseconds("scl", case, "both", "NVIDIA H200") == "42"
    assert predictions.microseconds("scl", case, "both", "NVIDIA H100 80GB HBM3") == "42"
    for other in ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"):
        assert predictions.microseconds("scl", case, "both", other) == ""
    monkeypatch.setattr(predictions, "TABLE", tmp_path / "none.csv")
    predictions.table.cache_clear()
    assert predictions.microseconds("scl", case, "both", "NVIDIA H200") == ""
    predictions.table.cache_clear()


def test_a_real_call_asks_for_what_there_is(monkeypatch):
    """Cases, peers, kernels and fields of tiles; those of a rehearsal differ."""
    from benchmarks.case import op_benchmark
    from benchmarks.gpu import bench, call, sweep

    monkeypatch.setenv("DRY", "0")
    for wanted in bench.plan():
        providers = op_benchmark(wanted.op).providers("cuda")
        names = {provider.name for provider in providers}
        assert {op_benchmark(wanted.op).OURS["cuda"], *wanted.peers} <= names, wanted
        assert wanted.group in call.BENCH_GROUPS
    sizes = {"scl": (128, "bf16", False, 90), "contrastive_idm": (128, "bf16", False, 90)}
    sizes |= {"tcc": (128, "bf16", 90), "queue_nce": (128, "bf16", 90)}
    variants = sweep.variants()
    assert len(set(map(repr, variants))) == len(variants)
    for variant in variants:
        with sweep.using(variant):
            module = importlib.import_module(f"fastseq.ops.{variant.op}.triton")
            for kernel in variant.kernels or [None]:
                names = [] if kernel is None else [kernel]
                tile = module.tiles(*names, *sizes[variant.op])
                assert {name: getattr(tile, name) for name in variant.change} == variant.change
        if variant.op == "scl":
            kernels = importlib.import_module("fastseq.ops.scl.triton_kernels")
            assert hasattr(kernels, f"scl_{variant.kernels[0]}_kernel")
        assert module.tiles.__module__ == module.__name__  # the shipped tiles are restored


# The training step


def test_lengths_go_on_until_memory_ends_and_then_to_the_longest_that_fits():
    from benchmarks.gpu import train

    asked, notes = [], {}

    def one(frames):
        asked.append(frames)
        if 10 * frames > 10_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"frames": frames, "peak": 10 * frames, "model": 100}

    train.series(one, [240, 480, 960, 1920, 3840], 10_100, notes.__setitem__)
    assert asked == [240, 480, 960, 1920]  # 0.97 of the card holds 979: no longer than 960
    assert notes[1920]["error"] == "out of memory"
    asked.clear()
    train.series(one, [240, 480, 1920], 10_100, notes.__setitem__)
    assert asked == [240, 480, 1920, 960]
    assert notes[960]["peak"] == 9600


def test_other_errors_are_not_taken_for_want_of_memory():
    from benchmarks.gpu import train

    def one(frames):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        train.attempt(one, 240)
