"""Every queue_nce kernel compiled for GPUs that this machine lacks: nothing spills, and tensor
cores are used.

Run as a program, it compiles the whole list and writes tests/data/queue_nce_resources.json, which
is valid for the Triton version that it names:
``PYTHONPATH=.:tests python -m ops.queue_nce.test_compile_offline``.
Words after it, such as ``scan sm_90``, limit it to kernels whose names contain all of them;
``core`` limits it to those that every run of the tests checks.
"""

import sys

import pytest
from offline import ARCHS, CHANNELS, PRECISIONS, Table, job

pytestmark = [pytest.mark.compile, pytest.mark.process]

POINTERS = {
    "scan": ("p_max", "p_sum", "p_acc"),
    "loss": ("p_pos", "p_max", "p_sum", "p_acc", "p_loss", "p_lack", "p_mean"),
    "grad": ("p_pos", "p_lack", "p_mean", "p_grad", "p_dq", "p_dpos", "p_dtau"),
}
INTEGERS = {
    "scan": ("N", "K", "stored", "span", "fold"),
    "loss": ("P", "stored"),
    "grad": ("P", "sgn", "sgp"),
}


def queue_nce_job(
    kernel, precision, d, arch, *, keep=True, norm=True, queue=None, folded=False, tau=False
):
    from fastseq.ops.common.launch import MOST_REGISTERS
    from fastseq.ops.queue_nce.triton import MAX_PARTS, MEAN, PLANES, POSITIVES, row_channels, tiles

    dtype, _ = PRECISIONS[precision]
    tile = tiles(d, precision, arch, keep)
    args = dict.fromkeys(POINTERS[kernel], "*fp32")
    args |= dict.fromkeys(("p_q", "p_pos", "p_dq", "p_dpos"), "*" + dtype)
    args |= {"p_c": "*" + (queue or dtype), "p_tau": "*fp32" if tau else None}
    if not tau:
        args |= dict.fromkeys({"p_dtau"} & set(POINTERS[kernel]))
    if not keep:
        args |= dict.fromkeys({"p_acc", "p_mean", "p_dq"} & set(POINTERS[kernel]))
    args |= dict.fromkeys(INTEGERS[kernel], "i32") | {"scale": "fp32", "rate": "fp32"}
    constants = {"D": d, "NORM": norm}
    options = {"num_warps": 4}
    if kernel == "scan":
        constants |= {"BM": tile.rows, "BN": tile.columns, "BK": tile.step, "BD": tile.channels}
        planes = PLANES[precision]
        constants |= {"KEEP": keep, "PLANES": planes, "PAIRS": planes == 1}
        options = {
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "maxnreg": tile.registers or MOST_REGISTERS,
        }
    else:
        constants["BD"] = row_channels(d)
    if kernel == "loss":
        constants |= {"BS": MAX_PARTS // 2, "BP": POSITIVES, "BC": min(MEAN, row_channels(d))}
        constants |= {"KEEP": keep, "FOLDED": folded}
    name = f"queue_nce_{kernel}_kernel"
    return job("fastseq.ops.queue_nce.triton_kernels", name, args, constants, arch, **options)


def core_cases():
    cases = [("scan", p, 128, 90, {}) for p in PRECISIONS]
    cases += [("scan", "bf16", 128, a, {}) for a in (80, 100)]
    return cases + [(k, "bf16", 128, 90, {}) for k in ("loss", "grad")]


def all_cases():
    cases = []
    for arch in ARCHS:
        for precision in PRECISIONS:
            cases += [("scan", precision, d, arch, {}) for d in CHANNELS[precision]]
            cases.append(("scan", precision, 128, arch, {"keep": False, "norm": False}))
        for precision in ("bf16", "tf32x3"):
            for kernel in ("loss", "grad"):
                cases += [(kernel, precision, d, arch, {}) for d in (16, 128, 512)]
                cases.append((kernel, precision, 128, arch, {"keep": False, "norm": False}))
        # A queue of another type; a width that is neither a power of two nor a multiple of 16
        # bytes; a long row.
        cases.append(("scan", "tf32x3", 128, arch, {"queue": "bf16"}))
        cases.append(("scan", "bf16", 200, arch, {}))
        cases.append(("scan", "tf32x3", 17, arch, {}))
        cases += [(kernel, "bf16", 2048, arch, {}) for kernel in ("loss", "grad")]
        cases.append(("loss", "bf16", 128, arch, {"folded": True}))
        cases += [(kernel, "bf16", 128, arch, {"tau": True}) for kernel in POINTERS]
    return cases


def name(kernel, precision, d, arch, kinds):
    kinds = {"keep": True, "norm": True, "queue": "", "folded": False, "tau": False} | kinds
    parts = [kernel, precision, f"D{d}", f"sm_{arch}", kinds["queue"]]
    parts += [word for word in ("keep", "norm", "folded", "tau") if kinds[word]]
    return " ".join(filter(None, parts))


TABLE = Table("queue_nce_resources.json", queue_nce_job, name, core_cases())


def multiplies(kernel, *_):
    return kernel == "scan"


def test_core():
    """The most common calls: D = 128, every precision on sm_90, bf16 on the others."""
    TABLE.check(core_cases(), multiplies)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_everything():
    """All precisions, channels, kinds and architectures. Takes many minutes on one core."""
    TABLE.check(all_cases(), multiplies)


if __name__ == "__main__":
    TABLE.update(all_cases(), *sys.argv[1:])
