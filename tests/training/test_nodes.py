"""torchrun on two machines, which are two torchruns on this one, and its restarts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATH, launch, said, train, wait
from runs import RECIPE, numbers, same, weights
from two_ranks import squares

pytestmark = pytest.mark.process

# The last rank is killed in step 8 of the first start, three steps after a checkpoint.
SCRIPT = """
import os, sys
from pathlib import Path
from processes import train
from two_ranks import squares
from training.support.distributed import leave

if not Path("run/checkpoints").exists():
    os.environ["STOP_AT"] = "SIGKILL:8"
leave(train(squares, sys.argv[1:]))
"""
RUN = ["tiny.yaml", "train.log_every=1"]
LIMIT = 240  # seconds


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run on two ranks without torchrun, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(RECIPE)
        processes = launch(train, squares, [*RUN, "train.run_dir=run"], num=2)
        assert wait(processes) == [0, 0], said(processes[0])
    return folder


def torchrun(number: int, *options: str, **environment: str) -> subprocess.Popen:
    """Its output goes to the file NUMBER.txt."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--max-restarts=1"]
    command += ["train_squares.py", *RUN, "train.run_dir=run"]
    environment = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"} | environment
    with open(f"{number}.txt", "w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def ended(torchruns: list[subprocess.Popen]) -> list[str]:
    """Their outputs, once they have ended well."""
    try:
        statuses = [process.wait(LIMIT) for process in torchruns]
    finally:
        for process in torchruns:
            process.terminate()  # it ends its ranks
    outputs = [Path(f"{number}.txt").read_text() for number in range(len(torchruns))]
    assert statuses == [0] * len(torchruns), "\n".join(outputs)
    return outputs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check(outputs: list[str], whole: Path) -> None:
    """The run continued once, and is the run that was not interrupted."""
    (line,) = [x for output in outputs for x in output.splitlines() if x.startswith("error")]
    assert "rank 1 was lost" in line
    assert "torchrun starts all ranks again, restart 1 of 1" in line
    assert sum(output.count("steps 5 to 12 on cpu") for output in outputs) == 1
    assert numbers("run") == numbers(str(whole / "run"))
    assert same(weights("run"), weights(str(whole / "run")))


def test_two_machines_train_as_one_and_continue_after_a_kill(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    Path("train_squares.py").write_text(SCRIPT)
    machines = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=clips"]
    machines += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    check(ended([torchrun(number, *machines, **own) for number in range(2)]), whole)


def test_one_machine_continues_after_a_kill(whole, tmp_path, monkeypatch):
    """With torchrun's default, one store for all restarts."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    Path("train_squares.py").write_text(SCRIPT)
    check(ended([torchrun(0, "--standalone", "--nproc-per-node=2")]), whole)
