"""Peak memory of one call above its inputs and gradients, measured in a child process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

CHILD = """
import torch, fastseq
torch.manual_seed(0)
z = torch.nn.functional.normalize(torch.randn(1, {frames}, {channels}), dim=-1)
z.requires_grad_()

def step():
    z.grad = None
    fastseq.contrastive_idm(z, distance={distance!r}, kind="sfa", backend={backend!r}).backward()

def status(name):
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith(name + ":"))

step()
z.grad = None
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # forget the peak so far
step()
gradients = z.numel() * 4 / 1024
print((status("VmHWM") - before - gradients) / 1024)
"""


def _peak(frames: int, channels: int, backend: str, distance: str) -> float:
    code = CHILD.format(frames=frames, channels=channels, backend=backend, distance=distance)
    # Fixed thresholds: what the warm-up freed goes back to the system instead of hiding the peak.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return float(out.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blockwise_memory_is_linear_in_frames():
    # MB; one 8192 x 8192 matrix is 268.
    assert _peak(8192, 128, "torch", "sqeuclidean") < 50
    assert _peak(8192, 16, "torch", "euclidean") < 50
    # The measurement sees a few 4 MB matrices, times four channels.
    assert _peak(1024, 4, "reference", "sqeuclidean") > 30
