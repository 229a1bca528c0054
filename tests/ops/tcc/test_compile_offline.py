"""Every tcc_loss kernel compiled for GPUs that this machine lacks: nothing spills, and tensor cores
are used.

Run as a program, it compiles the whole list and writes tests/data/tcc_resources.json, which is
valid for the Triton version that it names: ``PYTHONPATH=.:tests python -m
ops.tcc.test_compile_offline``. Words after it, such as ``grad D200``, limit it to kernels whose
names contain all of them; ``core`` limits it to those that every run of the tests checks.
"""

import sys

import pytest
from offline import ARCHS, CHANNELS, PRECISIONS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

PACKED = ("p_z", "p_bias", "p_t", "p_len", "p_seq")
STEPS = ("p_row", "p_pull", "p_level", "p_sum", "p_rest")
# Pointers, integers and floats of a kernel, in any order.
ARGUMENTS = {
    "nearest": (("p_nn", "p_row"), (), ()),
    "moments": (("p_nn", "p_row", "p_part"), (), ("variance_lambda", "smoothing", "delta")),
    "pull": (("p_nn", "p_row", "p_pull", "p_level"), (), ("smoothing",)),
    "keys": (("p_nn", "p_row", "p_sum", "p_rest"), ("add",), ("smoothing",)),
    "queries": (STEPS, ("add",), ()),
    "through": (STEPS, ("add",), ()),
}
GRADIENTS = ("keys", "queries", "through")
WITHOUT = {
    "nearest": ("p_t", "p_seq"),
    "moments": (),
    "pull": ("p_seq",),
    "keys": ("p_seq",),
    "queries": ("p_t", "p_seq"),
    "through": ("p_t", "p_seq"),
}


def tcc_job(kernel, precision, d, arch, **kinds):
    make = cycle_job if kernel in ARGUMENTS else around_job
    return make(kernel, precision, d, arch, **kinds)


def cycle_job(kernel, precision, d, arch, *, loss_type="regression_mse_var"):
    from fastseq.ops.common.launch import MOST_REGISTERS
    from fastseq.ops.tcc.triton import PLANES, packed_channels, tiles

    d = packed_channels(d)
    tile = tiles(kernel, d, precision, arch)
    pointers, ints, floats = ARGUMENTS[kernel]
    packed = (name for name in PACKED if name not in WITHOUT[kernel])
    args = dict.fromkeys((*packed, *pointers), "*fp32")
    planes = dict.fromkeys(("p_z", "p_nn", "p_pull"), "*bf16")
    args |= {name: kind for name, kind in planes.items() if name in args} | {"p_len": "*i32"}
    args["p_tau"] = None
    args |= dict.fromkeys(("M", "spans", "first", "hops", *ints), "i32")
    args |= dict.fromkeys(("scale", *floats), "fp32")
    constants = {"D": d, "BM": tile.rows, "BN": tile.columns, "BK": tile.step, "BD": tile.channels}
    constants |= dict(zip(("PZ", "PC", "ZZ"), PLANES[precision], strict=True))
    if kernel in ("moments", "pull", "keys"):
        constants["TYPE"] = loss_type
    if kernel in ("queries", "through"):
        constants["CHUNKS"] = d // tiles("pull", d, precision, arch).channels
    if kernel == "through":
        constants["CONVERT"] = arch >= 100
    return job(
        f"fastseq.ops.tcc.triton_{'gradients' if kernel in GRADIENTS else 'cycles'}",
        f"tcc_{kernel}_kernel",
        args,
        constants,
        arch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers or MOST_REGISTERS,
    )


def around_job(kernel, precision, d, arch, *, pairs=True, reduction="mean"):
    """The kernels around the cycles, each in the kinds that need most registers."""
    from fastseq.ops.tcc.triton import PLANES, packed_channels

    dtype = PRECISIONS[precision][0]
    module = "gradients" if kernel == "finish" else "pack"
    packed = {"CHANNELS": d, "D": packed_channels(d), "P": PLANES[precision][0], "BT": 32}
    packed |= {"BK": 128}
    if kernel == "reduce":
        args = {"p_part": "*fp32", "p_weight": "*fp32", "p_loss": "*fp32"}
        args |= dict.fromkeys(("N", "hops", "blocks"), "i32")
        constants = {"REDUCTION": reduction, "BV": 16, "BB": 64}
    elif kernel == "finish":
        args = dict.fromkeys(("p_sums", "p_rests", "p_dx", "p_dy"), "*fp32")
        args |= {"p_z": "*bf16", "p_len": "*i32", "p_tau": None, "scale": "fp32"}
        args |= dict.fromkeys(("N", "M", "spans", "T1", "T2"), "i32")
        constants = packed | {"L2": True, "PARTS": 3}
    else:
        args = {"p_x": "*" + dtype, "p_y": "*" + dtype, "p_lx": "*i64", "p_ly": "*i64"}
        args |= {"p_centre": "*fp32"}
        ints = ("N", "T1", "T2", "sxn", "sxt", "sxd", "syn", "syt", "syd")
        args |= dict.fromkeys(ints, "i32")
        constants = {"D": d, "PAIRS": pairs, "BT": 128, "BK": 16}
    if kernel == "pack":
        args |= {"p_z": "*bf16", "p_len": "*i32", "p_tx": "*i64", "p_ty": "*i64", "p_tau": None}
        args |= dict.fromkeys(("p_bias", "p_t", "p_seq", "p_dx", "p_dy", "p_grad"), "*fp32")
        ints = ("spans", "stx", "sty", "sg")
        args |= dict.fromkeys(ints, "i32") | {"unit": "fp32", "floor": "fp32"}
        constants = packed | {"PAIRS": pairs, "SHARES": False, "REDUCTION": reduction}
    name = f"tcc_{kernel}_kernel"
    return job(f"fastseq.ops.tcc.triton_{module}", name, args, constants, arch, num_warps=4)


def around_cases():
    cases = [
        (kernel, precision, 200, 90, {"pairs": pairs})
        for kernel in ("centre", "pack")
        for precision, pairs in (("bf16", True), ("tf32x3", True), ("tf32x3", False))
    ]
    cases += [("finish", precision, 200, 90, {}) for precision in ("bf16", "tf32x3")]
    return cases + [("reduce", "tf32x3", 0, 90, {"reduction": r}) for r in ("none", "mean")]


def core_cases():
    cases = [("keys", p, 128, 90, {}) for p in PRECISIONS]
    for kernel in ("nearest", "pull", "queries", "through"):
        cases += [(kernel, p, 128, 90, {}) for p in ("bf16", "tf32x3")]
    cases += [("moments", "bf16", 128, 90, {}), ("through", "bf16", 128, 80, {})]
    return cases + around_cases()


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ARGUMENTS:
                cases += [(kernel, precision, d, arch, {}) for d in CHANNELS[precision]]
        for precision in ("bf16", "tf32x3"):
            for kernel in ("moments", "pull", "keys"):
                cases.append((kernel, precision, 128, arch, {"loss_type": "classification"}))
            cases.append(("keys", precision, 128, arch, {"loss_type": "regression_mse"}))
    return cases


def name(kernel, precision, d, arch, kinds):
    if kernel not in ARGUMENTS:
        kinds = [f"{kind} {value}" for kind, value in kinds.items()]
        return " ".join((kernel, precision, f"D{d}", f"sm_{arch}", *kinds))
    kinds = {"loss_type": "regression_mse_var"} | kinds
    return " ".join((kernel, precision, f"D{d}", f"sm_{arch}", kinds["loss_type"]))


# They spill 8 and 27 registers; tiles that do not spill here are slower for the default loss.
SPILLING = frozenset(
    ("keys tf32x3 D128 sm_90 regression_mse", "pull bf16 D128 sm_90 classification")
)
TABLE = Table("tcc_resources.json", tcc_job, name, core_cases(), SPILLING)


def multiplies(kernel, *_):
    return kernel in ARGUMENTS


def test_core():
    """The most common calls: D = 128, every precision on sm_90, bf16 on sm_80; and the kernels
    around them.
    """
    TABLE.check(core_cases(), multiplies)


def test_rows_reach_as_far_as_columns():
    """A tile reads only data that a kernel has stored."""
    from fastseq.ops.tcc.triton import SPAN, tiles

    for arch in (0, 80, 86, 89, 90, 100, 120):
        for precision in PRECISIONS:
            for d in (16, 32, 64, 128, 256, 512):
                all_of_them = [tiles(kernel, d, precision, arch) for kernel in ARGUMENTS]
                rows, columns = zip(*((t.rows, t.columns) for t in all_of_them), strict=True)
                writers = rows[:3]  # nearest, moments, pull
                assert min(writers) % max(columns) == 0, (arch, precision, d)
                assert all(SPAN % n == 0 for n in rows)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """All precisions, channels, loss types and architectures. Takes many minutes on one core."""
    TABLE.check(all_cases())


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
