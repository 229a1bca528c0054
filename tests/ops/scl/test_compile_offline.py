"""Every scl_loss kernel compiled for GPUs that this machine lacks: nothing spills, and tensor cores
are used.

Run as a program, it compiles the whole list and writes tests/data/scl_resources.json, which is
valid for the Triton version that it names: ``PYTHONPATH=.:tests python -m
ops.scl.test_compile_offline``. Words after it, such as ``stats sm_90``, limit it to kernels whose
names contain all of them; ``core`` limits it to those that every run of the tests checks.
"""

import sys

import pytest
from offline import ARCHS, CHANNELS, PRECISIONS, Table, job

from fastseq.ops.scl.options import TARGETS

pytestmark = [pytest.mark.compile, pytest.mark.process]

MODULE = "fastseq.ops.scl.triton_kernels"
NEGATIVES = ("more", "more_grad")
KERNELS, MODES = ("stats", "grad"), ("shift", "online")


def scl_job(
    kernel,
    precision,
    d,
    arch,
    *,
    mode="shift",
    valid="mask",
    reduction="paper",
    long=False,
    more=False,
    learned=False,
    target="gauss",
    partial=False,
):
    """``mode``: "shift", "online" or "raw" (online, not normalised). The default of ``valid``
    selects the kind that needs most registers. ``learned``: temperature and variance are tensors,
    and the temperature has a gradient. ``partial``: for rows and columns of two ranks.
    """
    if kernel == "weights":
        return weights_job(arch, mode, learned, target)
    if kernel in NEGATIVES:
        return negatives_job(kernel, precision, d, arch, mode, learned)
    scalar = "*fp32" if learned else None
    from fastseq.ops.scl.triton import PLANES, parts, tiles

    dtype, dot = PRECISIONS[precision]
    online, masked = mode != "shift", valid == "mask"
    tile, planes = tiles(kernel, d, precision, online, arch, long, masked), PLANES[precision]
    z = "*" + dtype
    v = {"mask": "*i1", "lengths": "*i64", None: None}[valid]
    ints = ["N", "T1", "T2"]
    constants = {
        "D": d,
        "DP": max(16, 1 << (d - 1).bit_length()),
        "PLANES": planes,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.step,
        "PARTS": parts(arch),
        "ONLINE": online,
        "TARGET": target,
        "MASK": masked,
        "PREC": dot,
    }
    args = dict(zip(("p_z1", "p_z2", "p_v1", "p_v2"), (z, z, v, v), strict=True))
    args |= {"p_planes": "*bf16" if planes else None, "p_stats": "*fp32"}
    if kernel == "stats":
        sums = None if partial else "*fp32"
        ticket = None if partial else "*i32"
        args |= {"p_part": "*fp32", "p_loss": sums, "p_coef": sums, "p_ticket": ticket}
        constants |= {"KL": True, "REDUCTION": reduction, "PARTIAL": partial}
    else:
        out = "*fp32" if partial else z
        args |= {"p_coef": "*fp32", "p_grad": "*fp32", "p_d1": out, "p_d2": out}
        args |= {"p_tau": scalar, "p_along": scalar}
        ints += ["sg", "first_direction", "directions"]
        constants |= {"BD": tile.channels, "NORM": mode != "raw"}
    args |= {"p_more": "*fp32" if more else None, "p_var": scalar}
    args |= dict.fromkeys(ints, "i32") | dict.fromkeys(("scale", "rate", "reach"), "fp32")
    return job(
        MODULE,
        f"scl_{kernel}_kernel",
        args,
        constants,
        arch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers,
    )


def negatives_job(kernel, precision, d, arch, mode, learned):
    """For ``negatives="batch"``; "video" has simpler ranges of columns."""
    from fastseq.ops.scl.negatives import PLANES, tiles, unrolled

    tile = tiles(kernel, d, precision, mode != "shift", arch)
    step = max(tile.step, tile.channels)
    constants = {
        "P": -(-d // step) * step,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.step,
        "ONLINE": mode != "shift",
        "BATCH": True,
        "PLANES": PLANES[precision],
        "UNROLL": kernel == "more" and unrolled(d, precision, arch),
    }
    args = {"p_z": "*fp16" if precision == "fp16" else "*bf16", "p_x": "*fp32", "p_y": "*fp32"}
    ints = ["N", "T1", "T2", "L1", "L", "G"]
    if kernel == "more_grad":
        scalar = "*fp32" if learned else None
        args |= {"p_top": "*fp32", "p_tau": scalar, "p_along": scalar}
        ints += ["first_direction", "directions"]
        constants |= {"D": d, "BD": tile.channels, "NORM": mode != "raw"}
    args |= {"p_more": "*fp32"} | dict.fromkeys(ints, "i32") | {"scale": "fp32"}
    return job(
        MODULE.replace("triton_", "triton_negatives_"),
        f"scl_{kernel}_kernel",
        args,
        constants,
        arch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers,
    )


def weights_job(arch, mode, learned, target):
    args = {"p_stats": "*fp32"}
    names = ("p_lse1", "p_lse2", "p_weight1", "p_weight2", "p_target1", "p_target2")
    args |= dict.fromkeys(names, "*fp32") | {"p_var": "*fp32" if learned else None}
    args |= dict.fromkeys(("N", "T1", "T2"), "i32")
    args |= dict.fromkeys(("scale", "rate", "reach"), "fp32")
    constants = {"ONLINE": mode != "shift", "TARGET": target}
    module = MODULE.replace("triton_", "triton_ring_")
    return job(module, "scl_weights_kernel", args, constants, arch, num_warps=1)


def multiplies(kernel, *_):
    return kernel != "weights"


def core_cases():
    cases = [("grad", p, 128, 90, {}) for p in PRECISIONS]
    cases += [("grad", p, 128, 90, {"valid": None}) for p in PRECISIONS]
    cases += [("stats", p, 128, 90, {}) for p in ("bf16", "tf32", "tf32x3")]
    cases += [(k, "bf16", 128, a, {}) for k in ("stats", "grad") for a in (80, 100)]
    cases += [(k, p, 128, 90, {}) for k in NEGATIVES for p in ("bf16", "tf32x3")]
    learned = {"mode": "online", "learned": True}
    cases += [(k, "bf16", 128, 90, learned) for k in ("stats", "more_grad")]
    cases.append(("grad", "bf16", 128, 90, learned | {"valid": None}))
    # Summation adds no registers to the loops. These are the tightest kernels and the most common
    # calls.
    kinds = [{"reduction": reduction} for reduction in ("none", "mean", "sum")]
    kinds += [{"reduction": r, "valid": None} for r in ("mean", "paper")]
    kinds += [{"long": True, "valid": v} for v in (None, "lengths")]
    cases += [("stats", "bf16", 128, 90, kind) for kind in kinds]
    cases += [("stats", p, 128, 90, {"partial": True}) for p in ("bf16", "tf32x3")]
    cases.append(("grad", "bf16", 128, 90, {"partial": True}))
    cases.append(("weights", "bf16", 128, 90, {}))
    targets = [target for target in TARGETS if target != "gauss"]
    return cases + [(k, "bf16", 128, 90, {"target": t}) for k in ("stats", "grad") for t in targets]


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ("stats", "grad", *NEGATIVES):
                cases += [(kernel, precision, d, arch, {}) for d in CHANNELS[precision]]
                online = (64, 128, 256) if precision in ("bf16", "tf32x3") else (128,)
                cases += [(kernel, precision, d, arch, {"mode": "online"}) for d in online]
            for kernel in ("stats", "grad"):
                for valid in (None, "lengths"):
                    cases.append((kernel, precision, 128, arch, {"valid": valid}))
        for precision in ("bf16", "tf32x3"):
            for kernel in KERNELS:
                for mode in MODES:
                    # Of the targets, the sigmoid needs most registers.
                    kinds = {"mode": mode, "target": "sigmoid"}
                    cases.append((kernel, precision, 128, arch, kinds))
            for kernel in ("stats", "grad", *NEGATIVES):
                cases.append((kernel, precision, 128, arch, {"mode": "raw"}))
            for kernel in ("stats", "grad", "more_grad"):
                cases.append((kernel, precision, 128, arch, {"mode": "online", "learned": True}))
        for kernel in ("stats", "grad"):
            for mode in ("shift", "online"):
                cases.append((kernel, "bf16", 128, arch, {"mode": mode, "more": True}))
        # fp32 gradients are those of the whole loss.
        for precision, kernel in (("bf16", "stats"), ("bf16", "grad"), ("tf32x3", "stats")):
            for kinds in ({}, {"valid": None, "long": True}, {"target": "box"}):
                cases.append((kernel, precision, 128, arch, {"partial": True} | kinds))
            for mode in ({"mode": "online"}, {"mode": "online", "learned": True}):
                cases.append((kernel, precision, 128, arch, {"partial": True} | mode))
        for kinds in ({}, {"mode": "online", "learned": True}):
            cases.append(("weights", "bf16", 128, arch, kinds))
        # Neither a power of two nor a multiple of 16 bytes.
        cases.append(("grad", "bf16", 200, arch, {}))
        cases.append(("grad", "tf32x3", 17, arch, {}))
    return cases


def name(kernel, precision, d, arch, kinds):
    if kernel in NEGATIVES:
        parts = (kernel, precision, f"D{d}", f"sm_{arch}", kinds.get("mode", "shift"))
        return " ".join(parts) + " learned" * kinds.get("learned", False)
    kinds = {"mode": "shift", "valid": "mask", "reduction": "paper", "long": False} | kinds
    for word in ("more", "learned", "partial"):
        if kinds.pop(word, False):
            kinds[word] = word
    if kinds["reduction"] == "paper":
        kinds.pop("reduction")
    kinds["long"] = "long" if kinds["long"] else ""
    return " ".join(map(str, (kernel, precision, f"D{d}", f"sm_{arch}", *kinds.values()))).strip()


# They spill 3 to 18 registers, most of them outside the loops; tiles that do not spill are slower.
SPILLING = frozenset(
    (
        "grad bf16 D128 sm_90 online mask  learned",
        "grad bf16 D128 sm_100 raw mask",
        "grad tf32x3 D128 sm_80 online mask  learned",
        "grad tf32x3 D128 sm_100 online mask  learned",
        "grad tf32x3 D256 sm_90 shift mask",
        "grad tf32x3 D256 sm_90 online mask",
        "grad tf32x3 D512 sm_90 shift mask",
        "more_grad tf32x3 D128 sm_90 online learned",
    )
)
# The logarithm of sigmoid targets needs more registers: fp32 frames spill 2 to 60 of them.
SPILLING |= {
    "grad tf32x3 D128 sm_90 online mask  sigmoid",
    *(f"{k} tf32x3 D128 sm_100 {mode} mask  sigmoid" for k in KERNELS for mode in MODES),
}
# Of the parts of a loss over ranks, all outside the loops.
SPILLING |= {"stats bf16 D128 sm_90 shift None long partial"}
TABLE = Table("scl_resources.json", scl_job, name, core_cases(), SPILLING)


def test_core():
    """The most common calls: D = 128, every precision on sm_90, bf16 on the others, reductions."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """All precisions, channels, modes and architectures. Takes about half an hour on one core."""
    TABLE.check(all_cases(), multiplies)


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
