"""Every tcc_loss kernel compiled for GPUs that are not there: nothing spills, tensor cores work.

As a program it compiles the whole list and writes tests/data/tcc_resources.json, which holds for
the Triton version named in it: ``PYTHONPATH=.:tests python -m ops.tcc.test_compile_offline``.
Words after it, as in ``grad D200``, limit it to kernels that have all of them in their name;
``core`` to those that every run of the tests looks at.
"""

import sys

import pytest
from offline import ARCHS, PRECISIONS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

PACKED = ("p_z", "p_bias", "p_t", "p_len", "p_seq")
# Pointers, integers and floats of a kernel, in any order.
ARGUMENTS = {
    "nearest": (("p_nn", "p_row"), ("first",), ()),
    "moments": (("p_nn", "p_row", "p_part"), ("first",), ("variance_lambda", "smoothing", "delta")),
    "pull": (("p_nn", "p_row", "p_pull", "p_level"), ("first",), ("smoothing",)),
    "grad": (
        ("p_nn", "p_row", "p_pull", "p_level", "p_dx", "p_dy"),
        ("N", "T1", "T2", "first", "add"),
        ("smoothing",),
    ),
}
WITHOUT = {"nearest": ("p_t", "p_seq"), "moments": (), "pull": ("p_seq",), "grad": ("p_seq",)}


def tcc_job(kernel, precision, d, arch, **kinds):
    make = cycle_job if kernel in ARGUMENTS else around_job
    return make(kernel, precision, d, arch, **kinds)


def cycle_job(kernel, precision, d, arch, *, loss_type="regression_mse_var", l2=True):
    from fastseq.ops.common.launch import MOST_REGISTERS
    from fastseq.ops.tcc.triton import packed_channels, tiles

    dtype, dot = PRECISIONS[precision]
    channels, d = d, packed_channels(d)
    tile = tiles(kernel, d, precision, arch)
    pointers, ints, floats = ARGUMENTS[kernel]
    packed = (name for name in PACKED if name not in WITHOUT[kernel])
    args = dict.fromkeys((*packed, *pointers), "*fp32")
    args |= {"p_z": "*" + dtype, "p_len": "*i32"}
    args |= dict.fromkeys(("M", "T", "hops", *ints), "i32")
    args |= dict.fromkeys(("scale", *floats), "fp32")
    constants = {"D": d, "BM": tile.rows, "BN": tile.columns, "BK": tile.step, "PREC": dot}
    if kernel != "moments":
        constants["BD"] = tile.channels
    if kernel != "nearest":
        constants["TYPE"] = loss_type
    if kernel == "grad":
        chunks = -(-d // tiles("pull", d, precision, arch).channels)
        constants |= {"CHANNELS": channels, "L2": l2, "CHUNKS": chunks}
    return job(
        "fastseq.ops.tcc.triton_kernels",
        f"tcc_{kernel}_kernel",
        args,
        constants,
        arch,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers or MOST_REGISTERS,
    )


def around_job(kernel, dtype, d, arch, *, pairs=True, reduction="mean"):
    """The kernels around the cycles, each in the kinds that need most registers."""
    if kernel == "reduce":
        args = {"p_part": "*fp32", "p_weight": "*fp32", "p_loss": "*fp32"}
        args |= dict.fromkeys(("N", "hops", "blocks"), "i32")
        constants = {"REDUCTION": reduction, "BV": 16, "BB": 64}
    else:
        args = {"p_x": "*" + dtype, "p_y": "*" + dtype, "p_lx": "*i64", "p_ly": "*i64"}
        args |= {"p_centre": "*fp32"}
        ints = ("N", "T1", "T2", "sxn", "sxt", "sxd", "syn", "syt", "syd")
        args |= dict.fromkeys(ints, "i32")
        constants = {"D": d, "PAIRS": pairs, "BT": 128, "BK": 16}
    if kernel == "pack":
        args |= {"p_z": "*" + dtype, "p_len": "*i32", "p_tx": "*i64", "p_ty": "*i64"}
        args |= dict.fromkeys(("p_bias", "p_t", "p_seq", "p_dx", "p_dy", "p_grad"), "*fp32")
        args |= dict.fromkeys(("T", "stx", "sty", "sg"), "i32") | {"unit": "fp32", "floor": "fp32"}
        constants = {"CHANNELS": d, "D": -(-d // 32) * 32, "PAIRS": pairs, "BT": 32, "BK": 128}
        constants |= {"SHARES": False, "REDUCTION": reduction}
    name = f"tcc_{kernel}_kernel"
    return job("fastseq.ops.tcc.triton_pack", name, args, constants, arch, num_warps=4)


def around_cases():
    cases = [
        (kernel, dtype, 200, 90, {"pairs": pairs})
        for kernel in ("centre", "pack")
        for dtype, pairs in (("bf16", True), ("fp32", True), ("fp32", False))
    ]
    return cases + [("reduce", "fp32", 0, 90, {"reduction": r}) for r in ("none", "mean")]


def core_cases():
    cases = [("grad", p, 128, 90, {}) for p in PRECISIONS]
    cases += [(k, p, 128, 90, {}) for k in ("nearest", "pull") for p in ("bf16", "tf32x3")]
    cases += [("moments", "bf16", 128, 90, {}), ("grad", "bf16", 128, 80, {})]
    return cases + around_cases()


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            for kernel in ("nearest", "moments"):
                cases += [(kernel, precision, d, arch, {}) for d in (32, 128, 512)]
            for kernel in ("pull", "grad"):
                cases += [(kernel, precision, d, arch, {}) for d in (16, 64, 128, 256, 512)]
        for precision in ("bf16", "tf32x3"):
            for kernel in ("moments", "pull", "grad"):
                cases.append((kernel, precision, 128, arch, {"loss_type": "classification"}))
            cases.append(("grad", precision, 128, arch, {"loss_type": "regression_mse"}))
            cases.append(("grad", precision, 128, arch, {"l2": False}))
        # Not a power of two, not a multiple of 16 bytes.
        for kernel in ("nearest", "moments", "pull", "grad"):
            cases += [(kernel, precision, 200, arch, {}) for precision in ("bf16", "tf32x3")]
        cases.append(("grad", "tf32x3", 17, arch, {}))
    return cases


def name(kernel, precision, d, arch, kinds):
    if kernel not in ARGUMENTS:
        kinds = [f"{kind} {value}" for kind, value in kinds.items()]
        return " ".join((kernel, precision, f"D{d}", f"sm_{arch}", *kinds))
    kinds = {"loss_type": "regression_mse_var", "l2": True} | kinds
    parts = (kernel, precision, f"D{d}", f"sm_{arch}", kinds["loss_type"])
    return " ".join(parts) + " cosine" * (not kinds["l2"])


TABLE = Table("tcc_resources.json", tcc_job, name, core_cases())


def multiplies(kernel, *_):
    return kernel in ARGUMENTS


def test_core():
    """What most calls run: D = 128, every precision on sm_90, bf16 on sm_80; and all around it."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """Every precision, channel bucket, loss type and architecture. Many minutes on one core."""
    TABLE.check(all_cases())


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
