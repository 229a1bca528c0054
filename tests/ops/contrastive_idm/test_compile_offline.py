"""Every contrastive_idm kernel compiled for GPUs that are not there: nothing spills, tensor cores
work.

As a program it compiles the whole list and writes tests/data/contrastive_idm_resources.json, which
holds for the Triton version named in it:
``PYTHONPATH=.:tests python -m ops.contrastive_idm.test_compile_offline``.
Words after it, as in ``loss sm_90``, limit it to kernels that have all of them in their name;
``core`` to those that every run of the tests looks at.
"""

import sys

import pytest
from offline import ARCHS, PRECISIONS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

MODULE = "fastseq.ops.contrastive_idm.triton_kernels"


def cidm_job(
    kernel,
    precision,
    d,
    arch,
    *,
    kind="contrastive",
    direct=False,
    time="i64",
    own=True,
    reduction="mean",
):
    """The defaults of ``time`` and ``own`` (a length and a window for each sequence) are the kinds
    that need most registers."""
    from fastseq.ops.common.launch import MOST_REGISTERS
    from fastseq.ops.contrastive_idm.triton import tiles

    dtype, dot = PRECISIONS[precision]
    tile = tiles(kernel, d, precision, direct, arch)
    z = "*" + dtype
    constants = {
        "D": d,
        "BM": tile.rows,
        "BK": tile.step,
        "KIND": kind,
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
        args |= {"p_part": "*fp32", "p_loss": "*fp32", "p_coef": "*fp32", "p_ticket": "*i32"}
        constants["REDUCTION"] = reduction
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
        maxnreg=tile.registers or MOST_REGISTERS,
    )


def core_cases():
    cases = [(k, p, 128, 90, {}) for k in ("loss", "grad") for p in PRECISIONS]
    cases += [(k, "bf16", 128, a, {}) for k in ("loss", "grad") for a in (80, 100)]
    kinds = [{"reduction": r, "own": own} for r in ("none", "sum") for own in (False, True)]
    return cases + [("loss", "bf16", 128, 90, kind) for kind in kinds]


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ("loss", "grad"):
                for d in (16, 32, 64, 128, 256, 512):
                    cases.append((kernel, precision, d, arch, {}))
                for kind in ("idm", "sfa"):
                    cases.append((kernel, precision, 128, arch, {"kind": kind}))
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
    kinds = {"kind": "contrastive", "direct": False, "time": "i64", "own": True} | kinds
    kind, direct, time, own, *reduction = kinds.values()
    parts = (kernel, precision, f"D{d}", f"sm_{arch}", kind, time, *reduction)
    return " ".join(map(str, parts)) + " direct" * direct + " own" * own


TABLE = Table("contrastive_idm_resources.json", cidm_job, name, core_cases())


def multiplies(kernel, precision, d, arch, kinds):
    return kernel == "grad" or not kinds.get("direct")


def test_core():
    """What most calls run: D = 128, every precision on sm_90, bf16 on the others, reductions."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """Every precision, channel bucket, kind and architecture. Many minutes on one core."""
    TABLE.check(all_cases(), multiplies)


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
