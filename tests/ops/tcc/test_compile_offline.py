"""Every tcc_loss kernel compiled for GPUs that are not there: nothing spills, tensor cores work.

As a program it compiles the whole list and writes tests/data/tcc_resources.json, which holds for
the Triton version named in it: ``PYTHONPATH=.:tests python -m ops.tcc.test_compile_offline``.
Words after it, as in ``grad D200``, limit it to kernels that have all of them in their name.
"""

import sys

import pytest
from offline import ARCHS, PRECISIONS, Table, compile_all, fits, job

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


def tcc_job(kernel, precision, d, arch, *, loss_type="regression_mse_var", l2=True):
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


def pack_jobs(arch):
    """The kernels around the cycles, each in the kinds that need most registers."""
    ints = ("N", "T1", "T2", "sxn", "sxt", "sxd", "syn", "syt", "syd")
    for dtype, pairs in (("bf16", True), ("fp32", True), ("fp32", False)):
        args = {"p_x": "*" + dtype, "p_y": "*" + dtype, "p_lx": "*i64", "p_ly": "*i64"}
        centre = args | {"p_centre": "*fp32"} | dict.fromkeys(ints, "i32")
        packed = {"p_z": "*" + dtype, "p_len": "*i32"}
        packed |= dict.fromkeys(("p_bias", "p_t", "p_seq", "p_dx", "p_dy", "p_grad"), "*fp32")
        packed |= {"p_tx": "*i64", "p_ty": "*i64"} | centre
        packed |= dict.fromkeys(("T", "stx", "sty", "sg"), "i32")
        packed |= {"unit": "fp32", "floor": "fp32"}
        kinds = {"D": 200, "PAIRS": pairs}
        more = {"CHANNELS": 200, "D": 224, "PAIRS": pairs}
        more |= {"BT": 32, "BK": 128, "SHARES": False, "REDUCTION": "mean"}
        for kernel, types, constants in (
            ("centre", centre, kinds | {"BT": 128, "BK": 16}),
            ("pack", packed, more),
        ):
            yield _pack_job(kernel, types, constants, arch)
    args = {"p_part": "*fp32", "p_weight": "*fp32", "p_loss": "*fp32"}
    args |= dict.fromkeys(("N", "hops", "blocks"), "i32")
    for reduction in ("none", "mean"):
        yield _pack_job("reduce", args, {"REDUCTION": reduction, "BV": 16, "BB": 64}, arch)


def _pack_job(kernel, args, constants, arch):
    name = f"tcc_{kernel}_kernel"
    return job("fastseq.ops.tcc.triton_pack", name, args, constants, arch, num_warps=4)


def core_cases():
    cases = [("grad", p, 128, 90, {}) for p in PRECISIONS]
    cases += [(k, p, 128, 90, {}) for k in ("nearest", "pull") for p in ("bf16", "tf32x3")]
    return [*cases, ("moments", "bf16", 128, 90, {}), ("grad", "bf16", 128, 80, {})]


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
    kinds = {"loss_type": "regression_mse_var", "l2": True} | kinds
    parts = (kernel, precision, f"D{d}", f"sm_{arch}", kinds["loss_type"])
    return " ".join(parts) + " cosine" * (not kinds["l2"])


TABLE = Table("tcc_resources.json", tcc_job, name)


def test_core():
    """What most calls run: D = 128, every precision on sm_90, bf16 on sm_80."""
    TABLE.check(core_cases())


def test_around_the_cycles():
    for got in compile_all(list(pack_jobs(90))):
        fits("", got)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """Every precision, channel bucket, loss type and architecture. Many minutes on one core."""
    TABLE.check(all_cases())


if __name__ == "__main__":
    TABLE.update(all_cases() + core_cases(), *sys.argv[1:])
