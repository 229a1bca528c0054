"""Peak memory of one call above its inputs and gradients, measured in a child process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

CHILD = """
import torch, fastseq
z1, z2 = torch.randn(2, 1, {frames}, 128).unbind()
z1.requires_grad_(); z2.requires_grad_()

def step():
    z1.grad = z2.grad = None
    fastseq.scl_loss(z1, z2, backend={backend!r}).backward()

def status(name):
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith(name + ":"))

step()
z1.grad = z2.grad = None
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # forget the peak so far
step()
gradients = 2 * z1.numel() * 4 / 1024
print((status("VmHWM") - before - gradients) / 1024)
"""


def _peak(frames: int, backend: str) -> float:
    code = CHILD.format(frames=frames, backend=backend)
    # Fixed thresholds: what the warm-up freed goes back to the system instead of hiding the peak.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return float(out.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blockwise_memory_is_linear_in_frames():
    assert _peak(8192, "torch") < 50  # MB; the dense form needs over 1 GB
    assert _peak(1024, "reference") > 16  # the measurement sees a few 4 MB matrices
