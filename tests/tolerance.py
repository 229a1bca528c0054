"""The tolerance of tests in which results differ only by rounding: one rule for every op and
machine.

The rule is `as_accurate_as`. A figure measured on one machine is not a valid bound: the order in
which a CPU's BLAS, a tensor core or `exp` rounds differs between machines, and so do the last
digits of plain PyTorch and of a kernel. Therefore both are compared with float64 in the same test
on the same machine. Fixed numbers are used only for

* float64 against float64 or against loops over Python numbers: 1e-9 to 1e-14, which is far more
 than rounding and less than any mistake causes;
* results that are equal to the last bit, and values computed by hand that are exact in the dtype;
* published or released figures, to the published digits;
* properties (symmetries, limits, a range of fp16 that must not overflow) and approximations by
 others, with bounds orders of magnitude above rounding.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# A norm below this belongs to a result that vanishes; its errors are absolute.
VANISHES = 1e-4
# File given by --margins; as_accurate_as appends one JSON object per line.
margins: Path | None = None


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 error of ``a`` against ``b``; absolute where ``b`` vanishes."""
    a, b = a.detach().double(), b.detach().double()
    size = float(b.norm())
    return float((a - b).norm()) / (size if size > VANISHES else 1)


def rounding(dtype: torch.dtype) -> float:
    """The floor: the error that is allowed however exact plain PyTorch happens to be.

    16 eps in float32 (1.9e-6), for another order of summation, for exp2 and log2 of a GPU, which
    are accurate to 2 eps each, and for division. A quarter of an eps in halves, for rounding one
    operand of a product to them (0.2 eps, in L2); plain PyTorch also rounds the result.
    """
    eps = torch.finfo(dtype).eps
    return 16 * eps if dtype in (torch.float32, torch.float64) else eps / 4


def interpreted(dtype: torch.dtype, device: str) -> float | None:
    """The floor of halves where a kernel may be interpreted: one eps of bf16 on the CPU. There
    Triton's interpreter truncates to bf16 (0.4 eps in L2, twice) where a GPU rounds.
    """
    cut_off = dtype == torch.bfloat16 and device == "cpu"
    return torch.finfo(dtype).eps if cut_off else None


def as_accurate_as(
    got: Sequence[Tensor] | Tensor,
    plain: Sequence[Tensor] | Tensor,
    truth: Sequence[Tensor] | Tensor,
    *,
    floor: float | None = None,
    what: Sequence[str] = (),
) -> None:
    """Assert that the error of ``got`` is at most twice that of ``plain``, plus a floor.

    ``plain`` is plain PyTorch on the same inputs: in float32 for float32, and for halves with
    everything after the inputs in float32, so that only the result is rounded. (With logits in
    halves its error would be several times that of any kernel, and a bound of twice that would
    reject nothing.) ``truth`` is the same in float64. Errors are relative in L2, tensor by tensor.
    ``floor`` replaces `rounding` of each tensor's dtype; state why. ``what`` names the tensors
    (loss, dx, dy, ...).
    """
    if isinstance(got, Tensor):
        got, plain, truth = (got,), (plain,), (truth,)
    names = what or ("loss", *(f"gradient {k}" for k in range(1, len(got))))
    for name, g, p, t in zip(names, got, plain, truth, strict=True):
        assert t.dtype == torch.float64, f"the truth of {name} is {t.dtype}, not float64"
        least = rounding(g.dtype) if floor is None else floor
        error, peer = relative(g, t), relative(p, t)
        allowed = 2 * peer + least
        _note(name, error, peer, allowed)
        assert error <= allowed, (
            f"{name}: error {error:.3g} is more than the {allowed:.3g} allowed, twice that of "
            f"plain PyTorch ({peer:.3g}) plus {least:.3g}"
        )


def _note(name: str, error: float, plain: float, allowed: float) -> None:
    if margins is None:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    line = {"test": test, "what": name, "error": error, "plain": plain, "allowed": allowed}
    with margins.open("a") as file:
        file.write(json.dumps(line) + "\n")


def tightest(count: int) -> list[str]:
    """The ``count`` recorded errors that came closest to the allowed ones, one text line each."""
    noted = [json.loads(line) for line in margins.read_text().splitlines()]
    noted.sort(key=lambda n: n["error"] / n["allowed"], reverse=True)
    return [
        f"{n['error'] / n['allowed']:4.0%} of {n['allowed']:.2g}  (plain {n['plain']:.2g})  "
        f"{n['what']}: {n['test']}"
        for n in noted[:count]
    ]
