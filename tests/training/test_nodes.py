"""torchrun on two machines, which are two torchruns on this one, and its restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import PATH, launch, said, train, wait
from runs import RECIPE, numbers, same, weights
from two_ranks import squares

from training.runs.folder import _torchrun, restarted

pytestmark = pytest.mark.process

# The last rank is killed in step 8 of the first start, three steps after a checkpoint.
SCRIPT = """
import os, sys
from pathlib import Path
from processes import train
from two_ranks import squares
from training.support import lost
from training.support.distributed import leave

lost.ANSWER, lost.GRACE = 2, 5
if not Path("run/checkpoints").exists():
    os.environ["STOP_AT"] = "SIGKILL:8"
leave(train(squares, sys.argv[1:]))
"""
RUN = ["tiny.yaml", "train.run_dir=run", "train.log_every=1"]
LIMIT = 240  # seconds


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run on two ranks without torchrun, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(RECIPE)
        processes = launch(train, squares, RUN, num=2)
        assert wait(processes) == [0, 0], said(processes[0])
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)


def check(outputs: list[str], whole: Path) -> None:
    """The run continued once, and is the run that was not interrupted."""
    (line,) = [x for output in outputs for x in output.splitlines() if x.startswith("error")]
    assert "rank 1 was lost" in line
    assert "torchrun starts all ranks again, restart 1 of 1" in line
    assert sum(output.count("steps 5 to 12 on cpu") for output in outputs) == 1
    assert numbers("run") == numbers(str(whole / "run"))
    assert same(weights("run"), weights(str(whole / "run")))


def torchrun(number: int, endpoint: str) -> subprocess.Popen:
    """One of two machines; its output goes to the file NUMBER.txt."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-id=clips", f"--rdzv-endpoint={endpoint}"]
    command += ["--local-addr=127.0.0.1", "--max-restarts=1", "train_squares.py", *RUN]
    environment = {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(f"{number}.txt", "w") as output:
        return subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_machines_train_as_one_and_continue_after_a_kill(whole, folder):
    Path("train_squares.py").write_text(SCRIPT)
    endpoint = f"127.0.0.1:{free_port()}"
    machines = [torchrun(number, endpoint) for number in range(2)]
    try:
        statuses = [machine.wait(LIMIT) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # it ends its rank
    outputs = [Path(f"{number}.txt").read_text() for number in range(2)]
    assert statuses == [0, 0], "\n".join(outputs)
    check(outputs, whole)


def at_store(port: int) -> int:
    """Train with the store at this port; rank 1 is late."""
    os.environ["MASTER_PORT"] = str(port)
    time.sleep(1.5 * (os.environ["RANK"] == "1"))
    return train(squares, RUN)


def test_a_restart_in_the_same_store_finds_its_own_ranks(whole, folder):
    """torchrun on one machine has one store, where the ranks of the first start remain."""
    restarts = {"TORCHELASTIC_RUN_ID": "clips", "TORCHELASTIC_MAX_RESTARTS": "1"}
    first = launch(
        train, squares, RUN, num=2, STOP_AT="SIGKILL:8", TORCHELASTIC_RESTART_COUNT="0", **restarts
    )
    assert wait(first) == [1, -signal.SIGKILL]
    port = first[0].store.port
    again = launch(at_store, port, num=2, TORCHELASTIC_RESTART_COUNT="1", **restarts)
    assert wait(again, 90) == [0, 0], said(again[0])
    check([said(process) for process in (*first, *again)], whole)


def test_a_run_is_recognised_when_no_machine_counts_the_restart(tmp_path, monkeypatch):
    """As after a machine has come back."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "clips")
    facts = {"launch": "clips", "torchruns": [_torchrun(), "b:7:100"]}
    assert not restarted(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    assert restarted(tmp_path)
    # Another torchrun with the same number, as in a new container.
    earlier = f"{socket.gethostname()}:{os.getppid()}:1"
    (tmp_path / "environment.json").write_text(json.dumps(facts | {"torchruns": [earlier]}))
    assert not restarted(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps(facts | {"launch": "other"}))
    assert not restarted(tmp_path)
