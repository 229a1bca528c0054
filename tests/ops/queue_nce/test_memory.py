"""Peak memory of one call above its inputs and gradients, measured in a child process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

CHILD = """
import torch, fastseq
torch.manual_seed(0)
unit = torch.nn.functional.normalize
q, positives = unit(torch.randn({n}, 128), dim=1), unit(torch.randn({n}, 3, 128), dim=2)
queue = unit(torch.randn({length}, 128), dim=1)
leaves = q.requires_grad_(), positives.requires_grad_()

def step():
    for z in leaves:
        z.grad = None
    kwargs = {{"temperature": {temperature}, "backend": {backend!r}}}
    fastseq.queue_nce(q, positives, queue, **kwargs).backward()

def status(name):
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith(name + ":"))

step()
for z in leaves:
    z.grad = None
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # forget the peak so far
step()
gradients = sum(z.numel() for z in leaves) * 4 / 1024
print((status("VmHWM") - before - gradients) / 1024)
"""


def _peak(n: int, length: int, backend: str, temperature: float = 0.1) -> float:
    code = CHILD.format(n=n, length=length, backend=backend, temperature=temperature)
    # Fixed thresholds: what the warm-up freed goes back to the system instead of hiding the peak.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return float(out.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_matrix_of_queries_and_queue():
    # MB; one 512 x 131072 matrix is 268.
    assert _peak(512, 131072, "torch") < 15
    assert _peak(512, 16384, "torch", temperature=0.01) < 15  # with a running maximum
    # The measurement sees a few 2 MB matrices, times three positives.
    assert _peak(128, 4096, "reference") > 12
