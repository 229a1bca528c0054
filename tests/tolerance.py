"""What a test allows where rounding is all that may differ: one rule for every op and machine.

The rule is `as_accurate_as`. A figure that one machine gave is no bound: the order in which a CPU's
BLAS, a tensor core or `exp` rounds differs from machine to machine, and with it the last digits of
plain PyTorch and of a kernel alike. So both are held to float64 in the same test, on the same
machine. Fixed numbers stay for

* float64 against float64 or against loops over Python numbers: 1e-9 to 1e-14, which no rounding
  reaches and no mistake stays below;
* what is equal to the last bit, and values worked out by hand that are exact in the dtype;
* published or released figures, to the digits that were published;
* properties (symmetries, limits, a range of fp16 that must not overflow) and other people's
  approximations, whose bounds are orders of magnitude above rounding.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# Norms below this are of something that vanishes: errors are absolute there.
VANISHES = 1e-4
# Where --margins asks for it: what as_accurate_as found, one JSON object a line.
margins: Path | None = None


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 error of ``a`` against ``b``; absolute where ``b`` vanishes."""
    a, b = a.detach().double(), b.detach().double()
    size = float(b.norm())
    return float((a - b).norm()) / (size if size > VANISHES else 1)


def rounding(dtype: torch.dtype) -> float:
    """The floor: what passes however exact plain PyTorch happens to be.

    16 eps in float32 (1.9e-6): another order of summation, exp2 and log2 of a GPU, which are good
    to 2 eps each, and division. A quarter of an eps in halves: what rounding one operand of a
    product to them adds (0.2 eps, in L2); plain PyTorch has the result's own rounding as well.
    """
    eps = torch.finfo(dtype).eps
    return 16 * eps if dtype in (torch.float32, torch.float64) else eps / 4


def interpreted(dtype: torch.dtype, device: str) -> float | None:
    """The floor of halves where a kernel may be interpreted: one eps of bf16 on the CPU, since
    Triton's interpreter cuts numbers off to it (0.4 eps in L2, twice) where a GPU rounds them."""
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
    """The error of ``got`` is at most twice that of ``plain``, plus a floor.

    ``plain`` is plain PyTorch on the same inputs: in float32 for float32, and for halves with
    everything after the inputs in float32, so that only the result is rounded (logits in halves
    would make it several times worse than any kernel, and a bound of twice that empty). ``truth``
    is the same in float64. Errors are relative in L2, tensor by tensor. ``floor`` replaces
    `rounding` of each tensor's dtype; say why. ``what`` names the tensors (loss, dx, dy, ...).
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
    """The ``count`` noted errors that came closest to what is allowed, one text line each."""
    noted = [json.loads(line) for line in margins.read_text().splitlines()]
    noted.sort(key=lambda n: n["error"] / n["allowed"], reverse=True)
    return [
        f"{n['error'] / n['allowed']:4.0%} of {n['allowed']:.2g}  (plain {n['plain']:.2g})  "
        f"{n['what']}: {n['test']}"
        for n in noted[:count]
    ]
