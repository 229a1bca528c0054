"""Two processes with gloo on the CPU, compared with one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import PATH, launch, said, train, wait
from runs import RECIPE, numbers, same, weights
from two_ranks import LOSSES, main, repeated, squares

from training.runs.checkpoint import list_checkpoints, load_latest
from training.runs.log import read_log
from training.support import distributed

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one rank, and the pair of results of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for num in (1, 2):
            processes = launch(main, folder, num=num)
            assert wait(processes) == [0] * num, said(processes[0])
    one, *two = (torch.load(folder / f"ranks{name}.pt") for name in ("1_0", "2_0", "2_1"))
    return one, two


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


def check_equal(got: dict, expected: dict, tolerance: float) -> None:
    """Gradients relative to the largest of all, since some are sums that cancel to 0."""
    assert got["gradient"].keys() == expected["gradient"].keys()
    assert difference(got["loss"], expected["loss"]) < tolerance
    assert difference(got["norm"], expected["norm"]) < tolerance
    largest = max(gradient.abs().max() for gradient in expected["gradient"].values())
    assert 1e-3 < largest < 1e6
    for name, gradient in expected["gradient"].items():
        assert (got["gradient"][name] - gradient).abs().max() < tolerance * largest, name
        scale = gradient.abs().max()
        if scale > 1e-6 * largest:
            assert difference(got["gradient"][name], gradient) < 1e3 * tolerance, name


@pytest.mark.parametrize("name", [*LOSSES, "second half empty"])
def test_two_ranks_have_the_gradient_of_one(results, name):
    one, two = results
    # nearest, and losses that normalise, compute in fp32 whatever the dtype of the model
    tolerance = 1e-9 if name.startswith(("scl", "second", "class")) else 1e-5
    for rank in two:
        check_equal(rank["gradients"][name], one["gradients"][name], tolerance)
        for key, buffer in one["gradients"][name]["statistics"].items():
            assert difference(rank["gradients"][name]["statistics"][key], buffer) < 1e-9, key


def test_two_ranks_have_the_gradient_of_one_in_fp32(results):
    one, two = results
    check_equal(two[0]["gradients"]["scl in fp32"], one["gradients"]["scl in fp32"], 1e-5)


def test_every_rank_has_the_same_bits(results):
    first, second = results[1]
    for name, result in first["gradients"].items():
        assert same(result["gradient"], second["gradients"][name]["gradient"]), name
        assert same(result["statistics"], second["gradients"][name]["statistics"]), name


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_a_step_in_parts_has_the_gradient_of_one_at_once(results, reduction):
    one, two = results
    for rank in (one, *two):
        gradients = rank["gradients"]
        check_equal(gradients[f"{reduction}, in parts"], gradients[f"{reduction}, at once"], 1e-9)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("torch.float64", 1e-9), ("torch.float32", 2e-3)])
def test_batch_norm_over_ranks_is_that_of_all_rows(results, dtype, tolerance, empty):
    # In fp32, numbers around 1000 are exact only to 6e-5; E[x^2] - E[x]^2 would leave noise.
    one, two = results
    expected = one["batch_norm"][dtype][f"empty={empty}"]
    for rank in two:
        got = rank["batch_norm"][dtype][f"empty={empty}"]
        for key, value in expected.items():
            assert difference(got[key].double(), value.double()) < tolerance, key


def test_gathered_rows_and_their_gradients(results):
    first, second = (rank["gathered"] for rank in results[1])
    expected = torch.tensor([0.0, 1, 10, 11, 12])[:, None].expand(-1, 3)
    assert torch.equal(first["rows"], expected)
    assert torch.equal(second["rows"], expected)
    # loss of rank r: (r + 1) sum_i (i + 1) row_i, so row i gets (1 + 2) (i + 1)
    everyone = 3 * torch.arange(1.0, 6)[:, None].expand(-1, 3)
    assert torch.equal(torch.cat([first["gradient"], second["gradient"]]), everyone)
    assert first["masks"].tolist() == [True, True, False, True]
    assert first["masks"].dtype == torch.bool


def test_no_rank_steps_where_one_has_no_finite_loss(results):
    for rank in results[1]:
        assert rank["skipping"] == {
            "finite": False,
            "same": True,
            "nonfinite": [{"step": 1, "videos": [f"video{i}" for i in range(8)]}],
            "adam": 0,
        }


def test_the_first_step_sums_over_ranks_in_the_order_of_all_others(tmp_path, monkeypatch):
    """It may be the first after a resume. A sum of more than two numbers depends on its order."""
    monkeypatch.chdir(tmp_path)
    processes = launch(repeated, tmp_path, num=4)
    assert wait(processes) == [0] * 4, said(processes[0])
    for name, steps in torch.load("repeated.pt").items():
        assert all(same(step, steps[0]) for step in steps), name


def start(run: str, *options: str, num: int = 2, **environment: str) -> list:
    arguments = ["tiny.yaml", f"train.run_dir={run}", "train.log_every=1", *options]
    return launch(train, squares, arguments, num=num, **environment)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)


def test_two_ranks_train_end_and_resume(here):
    """Dropout is on, so that every rank's random state matters; with 5 videos, one is left over."""
    whole = start("whole")
    assert wait(whole) == [0, 0]
    assert said(whole[1]) == ""  # neither a progress bar nor lines
    assert len(numbers("whole")) == 12
    cut = start("cut", STOP_AT="SIGTERM:6")
    assert wait(cut) == [143, 143]
    assert "stopped; continue with --resume" in said(cut[0])
    assert [path.name for path in list_checkpoints("cut/checkpoints")][-1] == "step_00000007.pt"
    assert len(load_latest("cut/checkpoints")["ranks"]) == 2
    assert len(list(Path("cut/tensorboard").iterdir())) == 1  # only one process wrote
    assert wait(start("cut", "--resume")) == [0, 0]
    assert same(weights("cut"), weights("whole"))
    assert numbers("cut") == numbers("whole")


def test_one_rank_and_two_train_alike(here):
    still = ["model.dropout=0", "model.fc_dropout=0", "train.steps=4", "train.chunk_frames=0"]
    still += ["optim.lr=1e-5"]  # Adam turns rounding errors of small gradients into full steps
    assert wait(start("one", *still, num=1)) == [0]
    assert wait(start("two", *still)) == [0, 0]
    assert len(read_log("two")) == 4
    for a, b in zip(read_log("one"), read_log("two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    again = start("two", *still, "--resume", num=1)
    assert wait(again) == [0]
    assert "saved with ranks 2 (now 1): it continues, but not bit for bit" in said(again[0])


def test_two_ranks_describe_and_refuse(here):
    described = start("run", "--dry-run", "train.accumulate=3")
    assert wait(described) == [0, 0]
    step = "2 videos x 2 views x 8 frames = 32 frames of 16 px, 16 on each of 2 ranks; 3 times"
    assert step in said(described[0])
    assert "runs on      cpu and 1 more, fp32" in said(described[0])
    refused = start("run", "data.batch_size=3")
    assert wait(refused) == [2, 2]
    assert said(refused[0]) == (
        "error: data.batch_size: 3 items cannot be shared by 2 ranks; "
        "choose a multiple of the number of ranks\n"
    )
    assert said(refused[1]) == ""
    assert not Path("run").exists()


def broken_on_the_last(cfg, *arguments, **options):
    if distributed.rank() == distributed.world_size() - 1:
        raise FileNotFoundError(2, "No such file or directory", "videos")
    return squares(cfg)


def test_a_rank_that_cannot_start_says_why_and_ends_all(here):
    processes = launch(train, broken_on_the_last, ["tiny.yaml", "train.run_dir=run"], num=2)
    assert wait(processes) == [2, 2]
    assert said(processes[1]) == "error: rank 1: [Errno 2] No such file or directory: 'videos'\n"
    assert "error" not in said(processes[0])


def test_torchrun_passes_sigterm_on(here):
    script = Path("train_squares.py")
    script.write_text(
        "import sys; from processes import train; from two_ranks import squares\n"
        "from training.support.distributed import leave\n"
        "leave(train(squares, sys.argv[1:]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(script), "tiny.yaml", "train.run_dir=run", "train.steps=100000"]
    environment = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not read_log("run") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "stopped; continue with --resume: run" in error
    words = "tiny.yaml train.run_dir=run train.steps=100000 --resume"
    assert f"\n  torchrun --nproc-per-node 2 -m training.train {words}\n" in error
    state = load_latest("run/checkpoints")
    last = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    assert 4 <= last["step"] <= state["step"] < last["step"] + 4
