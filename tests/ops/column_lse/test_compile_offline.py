"""Every column_lse kernel compiled for GPUs that this machine lacks: nothing spills, and tensor
cores are used.

Run as a program, it compiles the whole list and writes tests/data/column_lse_resources.json, which
is valid for the Triton version that it names:
``PYTHONPATH=.:tests python -m ops.column_lse.test_compile_offline``.
Words after it, such as ``value sm_90``, limit it to kernels whose names contain all of them;
``core`` limits it to those that every run of the tests checks.
"""

import sys

import pytest
from offline import ARCHS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

TENSORS = {
    "value": ("p_x", "p_y", "p_value", "p_lse"),
    "dx": ("p_a", "p_b", "p_lse", "p_grad", "p_da"),
}
INTEGERS = {"value": ("T", "S"), "dx": ("A", "B", "S", "sgn", "sgs")}
for words in (TENSORS, INTEGERS):
    words["dy"] = words["dx"]


def column_lse_job(kernel, precision, d, arch, *, shifted=False, lengths=True):
    from fastseq.ops.column_lse.triton import PRECISION, tiles

    assert precision == PRECISION
    tile = tiles(d, arch)
    args = dict.fromkeys(TENSORS[kernel], "*fp32")
    sides = ("p_lx", "p_ly") if kernel == "value" else ("p_la", "p_lb")
    args |= dict.fromkeys(sides, "*i64" if lengths else None)
    args |= dict.fromkeys(INTEGERS[kernel], "i32") | {"rate": "fp32", "inverse": "fp32"}
    constants = {"D": d, "BM": tile.rows, "BN": tile.columns, "BK": tile.step, "PREC": precision}
    if kernel == "value":
        constants["SHIFTED"] = shifted
    else:
        constants |= {"BD": tile.channels, "COLUMNS": kernel == "dy"}
    name = f"column_lse_{'value' if kernel == 'value' else 'grad'}_kernel"
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return job("fastseq.ops.column_lse.triton_kernels", name, args, constants, arch, **options)


def core_cases():
    cases = [(kernel, "tf32x3", 128, 90, {}) for kernel in ("value", "dx", "dy")]
    return cases + [("dx", "tf32x3", 128, arch, {}) for arch in (80, 100)]


def all_cases():
    cases = []
    for arch in ARCHS:
        for kernel in ("value", "dx", "dy"):
            cases += [(kernel, "tf32x3", d, arch, {}) for d in (16, 17, 64, 128, 256, 512)]
            cases.append((kernel, "tf32x3", 128, arch, {"lengths": False}))
        cases.append(("value", "tf32x3", 128, arch, {"shifted": True}))
    return cases


def name(kernel, precision, d, arch, kinds):
    kinds = {"shifted": False, "lengths": True} | kinds
    parts = [kernel, precision, f"D{d}", f"sm_{arch}"]
    return " ".join([*parts, *(word for word in ("shifted", "lengths") if kinds[word])])


TABLE = Table("column_lse_resources.json", column_lse_job, name, core_cases())


def test_core():
    """The most common calls: D = 128."""
    TABLE.check(core_cases())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """All channels, kinds and architectures."""
    TABLE.check(all_cases())


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
