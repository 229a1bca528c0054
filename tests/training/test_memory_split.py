"""training.memory with data.split_time: each step on several ranks."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import launch, measure, said, wait
from runs import RECIPE

from training import memory
from training.recipe.load import ConfigError

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory of a CPU is read from /proc")


def in_copies(command: list[str], *, input: str, **_) -> SimpleNamespace:
    """Replaces subprocess.run: starts the ranks that torchrun would start."""
    python, *torchrun, ranks, module, name = command
    assert (python, module, name) == (sys.executable, "-m", "training.studies.memory_step")
    assert torchrun == ["-m", "torch.distributed.run", "--standalone"]
    processes = launch(measure, input, num=int(ranks.removeprefix("--nproc-per-node=")))
    statuses = wait(processes)
    texts = [said(process) for process in processes]
    assert not any("peak" in text for text in texts[1:])  # one rank writes
    return SimpleNamespace(returncode=max(statuses), stdout=texts[0], stderr="\n".join(texts))


@linux
@pytest.mark.process
def test_two_ranks_measure_their_parts_of_a_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(subprocess, "run", in_copies)
    command = ["tiny.yaml", "data.split_time=2", "data.batch_size=1", "augmentation.size=32"]
    command += ["train.chunk_frames=120", "--frames", "240,960", "--out", "out"]
    assert memory.main(command) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "memory.json").read_text())
    assert result["ranks"] == 2
    parts = next(run["parts"] for run in result["runs"] if run["frames"] == 960)
    assert parts["frames"] == pytest.approx(480 * 2 * 3 * 32 * 32, rel=0.2)
    assert "2 clips of T frames over 2 ranks" in capsys.readouterr().out


def test_the_plain_way_is_one_rank_s():
    arguments = ["recipes/carl.yaml", "data.split_time=4", "--plain"]
    args = memory.parse_arguments(arguments)
    assert memory.request(args, "recipe", 480)["ranks"] == 4
    assert memory.request(args, "plain", 480)["ranks"] == 1
    with pytest.raises(ConfigError, match=r"4 ranks cannot share .*=482 frames"):
        memory.request(args, "recipe", 482)
