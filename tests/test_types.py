"""How a type checker judges code that uses the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: pip install mypy")
pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
RIGHT = """\
import fastseq
import fastseq.compat.carl
import torch

z = torch.randn(2, 8, 4)
fastseq.scl_loss(z, z, temperature=0.1).backward()
fastseq.nn.SCLLoss(temperature=0.1)(z, z)
fastseq.compat.carl.SCL
frames: int = fastseq.video.probe("a.mp4").frames
copy: fastseq.video.VideoInfo = fastseq.video.transcode("a.mp4", "b.mp4")
engine: fastseq.video.Engine = fastseq.video.PyAVEngine(224)
for batch in engine.batches(lambda k: [], 0, 1):
    batch.float().mean()
"""
WRONG = """\
import fastseq
import torch

z = torch.randn(2, 8, 4)
fastseq.scl_los(z, z)
fastseq.scl_loss(z, z, temperature="low")
fastseq.nn.SCLLos()
fastseq.vide
frames: str = fastseq.video.probe("a.mp4").frames
"""
SAID = {
    5: 'has no attribute "scl_los"',
    6: 'incompatible type "str"; expected "float | Tensor"',
    7: 'has no attribute "SCLLos"',
    8: 'has no attribute "vide"',
    9: "Incompatible types in assignment",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, dict[int, str]]:
    """File -> line -> error, from one run; it takes a minute when nothing of torch is cached."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", folder / "right.py", folder / "wrong.py"]
    command += ["--hide-error-context", "--no-error-summary", "--no-pretty"]
    child = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert child.returncode == 1, child.stdout + child.stderr
    found: dict[str, dict[int, str]] = {"right.py": {}, "wrong.py": {}}
    for line in child.stdout.splitlines():
        path, number, kind, text = line.split(":", 3)
        if kind == " error":
            found[Path(path).name][int(number)] = text
    return found


def test_a_name_that_does_not_exist_is_reported(errors):
    assert set(errors["wrong.py"]) == set(SAID)
    for line, said in SAID.items():
        assert said in errors["wrong.py"][line]


def test_right_use_passes(errors):
    assert errors["right.py"] == {}
