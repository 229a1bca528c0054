"""Peak memory of one call above its inputs and gradients, measured in a child process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

CHILD = """
import torch, fastseq
x, y = torch.randn(2, 1, {frames}, 128).unbind()
x.requires_grad_(); y.requires_grad_()

def step(frames):
    x.grad = y.grad = None
    fastseq.tcc_loss(x[:, :frames], y[:, :frames], backend={backend!r}).backward()

def status(name):
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith(name + ":"))

step(256)
x.grad = y.grad = None
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # forget the peak so far
step({frames})
gradients = 2 * x.numel() * 4 / 1024
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
    assert _peak(8192, "torch") < 50  # MB; a single T x T matrix is 268 MB
    assert _peak(1024, "reference") > 16  # the measurement sees a few 4 MB matrices
