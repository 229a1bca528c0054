"""Every Triton kernel of sinkhorn_alignment compiled for GPUs that this machine lacks: nothing
spills, and tensor cores are used.

Run as a program, it compiles the whole list and writes tests/data/sinkhorn_resources.json, which is
valid for the Triton version that it names:
``PYTHONPATH=.:tests python -m ops.sinkhorn.test_compile_offline``.
Words after it, such as ``grad sm_90``, limit it to kernels whose names contain all of them;
``core`` limits it to those that every run of the tests checks.
"""

import hashlib
import sys

import pytest
from offline import ARCHS, PRECISIONS, ROOT, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

KERNELS = ("potential", "adjoint", "grad")
POINTERS = {
    "potential": ("p_f", "p_g", "p_mean"),
    "adjoint": ("p_f", "p_g", "p_u", "p_w"),
    "grad": ("p_f", "p_g", "p_u", "p_w", "p_grad", "p_out"),
}
# The tile functions that come from tcc: their digest is part of every job.
SHARED = [ROOT / "fastseq/ops/tcc" / name for name in ("triton_tiles.py", "triton_pack.py")]


def sinkhorn_job(kernel, precision, d, arch, *, side=0, centres=True, virtual=True, kind=None):
    """``kind``: "first" (the first g), "mean" (potentials and mean distances), "last" (adjoints of
    the last iteration). The defaults select the code that needs most registers.
    """
    from fastseq.ops.common.launch import MOST_REGISTERS
    from fastseq.ops.sinkhorn.triton import constants, pack, tiles
    from fastseq.ops.tcc.triton import packed_channels

    dtype, _ = PRECISIONS[precision]
    args = dict.fromkeys(("p_lx", "p_ly"), "*i64")
    ints = ["N", "T", "S", "spans", "iterations"]
    if kernel == "pack":
        args |= dict.fromkeys(("p_x", "p_y"), "*" + dtype) | {"p_z": "*bf16"}
        args |= {
            "p_pairs": "*fp32",
            "p_centre": "*fp32" if dtype == "fp32" else None,
            "p_h": "*fp32",
            "p_f": "*fp32",
        }
        chosen = pack(d, precision)
        module, options = "kernels", {"num_warps": 4}
    else:
        args |= {"p_z": "*bf16", "p_h": "*fp32", "p_c": "*fp32" if centres else None}
        args |= {"p_pairs": "*fp32"} | dict.fromkeys(POINTERS[kernel], "*fp32")
        chosen = constants(kernel, d, precision, arch) | {"ROWS": side == 0}
        tile = tiles(kernel, packed_channels(d), precision, arch)
        ints.append("sg" if kernel == "grad" else "k")
        module, options = "gradients", {"num_warps": tile.warps, "num_stages": tile.stages}
        options["maxnreg"] = tile.registers or MOST_REGISTERS
    if kernel == "potential":
        module, chosen["FIRST"] = "kernels", kind == "first"
        args["p_mean"] = "*fp32" if kind == "mean" else None
    if kernel == "adjoint":
        chosen["LAST"] = kind == "last"
    if kernel == "grad":
        args["p_out"] = "*" + dtype
    args |= dict.fromkeys(ints, "i32")
    made = job(
        f"fastseq.ops.sinkhorn.triton_{module}",
        f"sinkhorn_{kernel}_kernel",
        args,
        chosen | {"VIRTUAL": virtual},
        arch,
        **options,
    )
    text = b"".join(path.read_bytes() for path in SHARED)
    return made | {"shared": hashlib.sha256(text).hexdigest()[:16]}


def core_cases():
    cases = [(k, p, 128, 90, {}) for k in KERNELS for p in ("bf16", "tf32x3")]
    cases += [(k, "bf16", 128, a, {}) for k in KERNELS for a in (80, 100)]
    return [*cases, ("pack", "bf16", 128, 90, {})]


def all_cases():
    y = {"side": 1}
    cases = []
    for arch in ARCHS:
        for precision in ("bf16", "tf32x3"):
            cases += [(k, precision, 128, arch, kinds) for k in KERNELS for kinds in ({}, y)]
        cases.append(("adjoint", "bf16", 128, arch, y | {"kind": "last"}))
        cases.append(("potential", "bf16", 128, arch, y | {"kind": "first"}))
        cases.append(("potential", "bf16", 128, arch, {"kind": "mean"}))
    cases += [("grad", precision, 128, 90, {}) for precision in ("fp16", "tf32")]
    return cases + [("grad", precision, 512, 90, {}) for precision in ("bf16", "tf32x3")]


def name(kernel, precision, d, arch, kinds):
    kinds = {"side": 0, "centres": True, "virtual": True, "kind": None} | kinds
    parts = [kernel, precision, f"D{d}", f"sm_{arch}", "xy"[kinds["side"]], kinds["kind"]]
    parts += [word for word in ("centres", "virtual") if kinds[word]]
    return " ".join(filter(None, parts))


# They spill 2 and 8 registers.
SPILLING = frozenset(
    (
        "grad tf32x3 D128 sm_90 y centres virtual",
        "grad tf32x3 D128 sm_100 x centres virtual",
    )
)
TABLE = Table("sinkhorn_resources.json", sinkhorn_job, name, core_cases(), SPILLING)


def multiplies(kernel, *_):
    return kernel != "pack"


def test_core():
    """The most common calls: D = 128, bf16 and fp32 on sm_90, bf16 on the others."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """Both sides, kinds of passes and architectures. Takes many minutes on one core."""
    TABLE.check(all_cases(), multiplies)


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
