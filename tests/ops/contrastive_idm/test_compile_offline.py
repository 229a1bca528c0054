"""Every contrastive_idm kernel compiled for GPUs that this machine lacks: nothing spills, and
tensor cores are used.

Run as a program, it compiles the whole list and writes tests/data/contrastive_idm_resources.json,
which is valid for the Triton version that it names:
``PYTHONPATH=.:tests python -m ops.contrastive_idm.test_compile_offline``.
Words after it, such as ``loss sm_90``, limit it to kernels whose names contain all of them;
``core`` limits it to those that every run of the tests checks.
"""

import sys

import pytest
from offline import ARCHS, CHANNELS, PRECISIONS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

SQUARED = "fastseq.ops.contrastive_idm.triton_kernels"
PREPARE = "fastseq.ops.contrastive_idm.triton_operands"
DIRECT = "fastseq.ops.contrastive_idm.triton_direct"


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
    """The defaults of ``time`` (for "prepare" only) and ``own`` (a length and a window for each
    sequence) select the kinds that need most registers.
    """
    from fastseq.ops.contrastive_idm.triton import constants

    dtype, _ = PRECISIONS[precision]
    kernels = constants(d, precision, arch, kind, True, direct, reduction)
    keywords = dict(kernels[kernel])
    split = "*bf16" if dtype == "fp32" else None
    z, lengths, windows = "*" + dtype, "*i64" if own else None, "*fp32" if own else None
    side = {"p_side": "*fp32"}
    if not direct:
        side |= {"p_span": "*fp32", "p_planes": split}
    if kernel == "prepare":
        args = {"p_z": z, "p_t": None if time is None else "*" + time, "p_len": lengths}
        args |= {"p_side": "*fp32", "p_span": "*fp32", "p_planes": None if direct else split}
        args |= {"T": "i32", "st": "i32"}
    elif kernel == "loss":
        args = {"p_z": z, **side, "p_len": lengths, "p_window": windows}
        args |= {"p_part": "*fp32", "p_loss": "*fp32", "p_coef": "*fp32", "p_ticket": "*i32"}
        args |= {"N": "i32", "T": "i32", "window": "fp32", "margin": "fp32"}
    else:
        args = {"p_z": z, **side, "p_len": lengths, "p_window": windows}
        args |= {"p_coef": "*fp32", "p_grad": "*fp32", "p_dz": z}
        args |= {"T": "i32", "sg": "i32", "window": "fp32", "margin": "fp32"}
    options = ("num_warps", "num_stages", "maxnreg")
    found = {name: keywords.pop(name) for name in options if name in keywords}
    form = "direct_" if direct and kernel != "prepare" else ""
    module = PREPARE if kernel == "prepare" else DIRECT if form else SQUARED
    return job(module, f"cidm_{form}{kernel}_kernel", args, keywords, arch, **found)


def core_cases():
    cases = [(k, p, 128, 90, {}) for k in ("prepare", "loss", "grad") for p in PRECISIONS]
    cases += [(k, "bf16", 128, a, {}) for k in ("loss", "grad") for a in (80, 100)]
    kinds = [{"reduction": r, "own": own} for r in ("none", "sum") for own in (False, True)]
    return cases + [("loss", "bf16", 128, 90, kind) for kind in kinds]


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ("loss", "grad"):
                cases += [(kernel, precision, d, arch, {}) for d in CHANNELS[precision]]
                cases.append((kernel, precision, 128, arch, {"direct": True}))
            cases += [("prepare", precision, d, arch, {}) for d in (128, 512)]
        for precision in ("bf16", "tf32x3"):
            for kernel in ("loss", "grad"):
                for kind in ("idm", "sfa"):
                    cases.append((kernel, precision, 128, arch, {"kind": kind}))
                cases.append((kernel, precision, 128, arch, {"own": False}))
            for time in (None, "fp32", "i32"):
                cases.append(("prepare", precision, 128, arch, {"time": time}))
        cases.append(("prepare", "bf16", 128, arch, {"direct": True}))
        # Neither a power of two nor a multiple of 16 bytes.
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
    return kernel == "grad" or (kernel == "loss" and not kinds.get("direct"))


def test_core():
    """The most common calls: D = 128, every precision on sm_90, bf16 on the others, reductions."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """All precisions, channels, kinds and architectures. Takes many minutes on one core."""
    TABLE.check(all_cases(), multiplies)


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
