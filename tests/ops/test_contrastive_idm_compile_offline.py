"""Every contrastive_idm kernel compiled for GPUs that are not there: nothing spills, tensor cores
work.

As a program it compiles the whole list and writes tests/data/contrastive_idm_resources.json, which
holds for the Triton version named in it:
``PYTHONPATH=.:tests python -m ops.test_contrastive_idm_compile_offline``.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
from offline import compile_all, job

TABLE = Path(__file__).resolve().parent.parent / "data" / "contrastive_idm_resources.json"
ARCHS = (80, 90, 100)
# Shared memory that one program can have, in bytes; sm_86 and sm_89 run the code for sm_80.
SHARED_LIMIT = {80: 101_376, 90: 232_448, 100: 232_448}
PRECISIONS = {
    "bf16": ("bf16", "tf32"),
    "fp16": ("fp16", "tf32"),
    "tf32": ("fp32", "tf32"),
    "tf32x3": ("fp32", "tf32x3"),
}
TENSOR_CORE = {"HMMA", "HGMMA", "UTCHMMA"}
MODULE = "fastseq.ops.contrastive_idm.triton_kernels"


def cidm_job(kernel, precision, d, arch, *, form="contrastive", direct=False, time="i64", own=True):
    """The defaults of ``time`` and ``own`` (a length and a window for each sequence) are the kinds
    that need most registers."""
    from fastseq.ops.contrastive_idm.triton import MAX_REGISTERS, tiles

    dtype, dot = PRECISIONS[precision]
    tile = tiles(kernel, d, precision, direct, arch)
    z = "*" + dtype
    constants = {
        "D": d,
        "BM": tile.rows,
        "BK": tile.step,
        "FORM": form,
        "PAPER": True,
        "DIRECT": direct,
        "CENTRE": dtype == "fp32",
        "PREC": dot,
    }
    args = {
        "p_z": z,
        "p_t": None if time is None else "*" + time,
        "p_len": "*i64" if own else None,
        "p_window": "*fp32" if own else None,
    }
    ints = ["N", "T", "st"]
    if kernel == "loss":
        args["p_part"] = "*fp32"
    else:
        args |= {"p_coef": "*fp32", "p_grad": "*fp32", "p_dz": z}
        ints.append("sg")
        constants |= {"BN": tile.columns, "BD": tile.channels}
    args |= dict.fromkeys(ints, "i32") | dict.fromkeys(("window", "margin"), "fp32")
    return job(
        MODULE,
        f"cidm_{kernel}_kernel",
        args,
        constants,
        arch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=MAX_REGISTERS,
    )


def reduce_job(reduction, arch, own):
    args = {
        "p_part": "*fp32",
        "p_len": "*i64" if own else None,
        "p_loss": "*fp32",
        "p_coef": "*fp32",
    } | dict.fromkeys(("N", "T", "blocks"), "i32")
    constants = {"REDUCTION": reduction, "BV": 16, "BB": 64}
    return job(MODULE, "cidm_reduce_kernel", args, constants, arch, num_warps=4)


def core_cases():
    cases = [(k, p, 128, 90, {}) for k in ("loss", "grad") for p in PRECISIONS]
    return cases + [(k, "bf16", 128, a, {}) for k in ("loss", "grad") for a in (80, 100)]


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ("loss", "grad"):
                for d in (16, 32, 64, 128, 256, 512):
                    cases.append((kernel, precision, d, arch, {}))
                for form in ("idm", "sfa"):
                    cases.append((kernel, precision, 128, arch, {"form": form}))
                for time in (None, "fp32", "i32"):
                    cases.append((kernel, precision, 128, arch, {"time": time, "own": False}))
                cases.append((kernel, precision, 128, arch, {"direct": True}))
        # Not a power of two, not a multiple of 16 bytes.
        cases.append(("grad", "bf16", 200, arch, {}))
        cases.append(("grad", "tf32x3", 17, arch, {}))
        for d in (17, 512):
            cases.append(("grad", "tf32x3", d, arch, {"direct": True}))
    return cases


def name(kernel, precision, d, arch, kinds):
    kinds = {"form": "contrastive", "direct": False, "time": "i64", "own": True} | kinds
    form, direct, time, own = kinds.values()
    parts = (kernel, precision, f"D{d}", f"sm_{arch}", form, time)
    return " ".join(map(str, parts)) + " direct" * direct + " own" * own


def measure(cases, cache):
    jobs = [cidm_job(*case[:4], **case[4]) for case in cases]
    return {name(*c): r for c, r in zip(cases, compile_all(jobs, cache), strict=True)}


def check(cases, results):
    import triton

    table = json.loads(TABLE.read_text())
    for case in cases:
        kernel, _, _, arch, kinds = case
        key = name(*case)
        got = results[key]
        assert "error" not in got, f"{key}: {got['error']}"
        assert got["stack"] == 0, f"{key}: {got}"
        assert got["spills"] == 0, f"{key}: {got}"
        assert got["shared"] <= SHARED_LIMIT[arch], f"{key}: {got}"
        if kernel == "grad" or not kinds.get("direct"):
            assert TENSOR_CORE & set(got["mma"]), f"{key}: {got}"
        if triton.__version__ == table["triton"]:
            assert got == table["kernels"][key], f"{key}: run {Path(__file__).name} to update"


def test_core(tmp_path):
    """What most calls run: D = 128, every precision on sm_90, bf16 on the others."""
    check(core_cases(), measure(core_cases(), tmp_path))


def test_reduce(tmp_path):
    jobs = [reduce_job(r, 90, own) for r in ("none", "mean", "sum") for own in (False, True)]
    for got in compile_all(jobs, tmp_path):
        assert "error" not in got, got
        assert got["stack"] == got["spills"] == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything(tmp_path):
    """Every precision, channel bucket, form and architecture. Many minutes on one core."""
    check(all_cases(), measure(all_cases(), tmp_path))


def _update() -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # this process only names the tiles
    import triton

    cases = {name(*c): c for c in all_cases() + core_cases()}
    with tempfile.TemporaryDirectory() as cache:
        kernels = measure(list(cases.values()), Path(cache))
    for key, got in kernels.items():
        if "error" in got or got["stack"] or got["spills"]:
            print(key, got)
    rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(kernels.items())]
    text = f'{{\n  "triton": "{triton.__version__}",\n  "kernels": {{\n'
    TABLE.write_text(text + ",\n".join(rows) + "\n  }\n}\n")


if __name__ == "__main__":
    _update()
