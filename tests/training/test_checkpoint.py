import os
import random

import numpy as np
import pytest
import torch

from training.checkpoint import (
    list_checkpoints,
    load_latest,
    random_state,
    save_checkpoint,
    set_random_state,
)


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_are_kept_and_the_newest_loaded(tmp_path):
    for step in (5, 900, 1000):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert names(tmp_path) == ["step_00000900.pt", "step_00001000.pt"]
    latest = load_latest(tmp_path)
    assert latest["step"] == 1000
    assert torch.equal(latest["weights"], torch.full((1000,), 1000.0))


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


class Crash(BaseException):
    """Nothing in the code under test may catch it, as with a kill."""


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch, function):
    save_checkpoint(tmp_path, 1, state(1))

    def crash(*args):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, function, crash)
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, 2, state(2))
    assert names(tmp_path) == ["step_00000001.pt"]
    assert load_latest(tmp_path)["step"] == 1


def test_what_a_kill_leaves_behind_is_never_taken_for_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / "step_00000002.tmp").write_bytes(b"half")
    assert load_latest(tmp_path)["step"] == 1
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_full_disk_raises_and_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))

    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    assert names(tmp_path) == ["step_00000001.pt"]


def test_a_damaged_file_is_reported_and_passed_over(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    newest = tmp_path / "step_00000002.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    assert load_latest(tmp_path)["step"] == 1
    assert "step_00000002.pt cannot be read" in caplog.text
    (tmp_path / "step_00000001.pt").write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the 2 checkpoints"):
        load_latest(tmp_path)


def test_random_state_returns_through_a_file(tmp_path):
    def draw() -> list[float]:
        legacy = np.random.random(), np.random.normal()  # noqa: NPY002
        return [random.random(), *legacy, torch.rand(()).item(), random.gauss(0, 1)]

    draw()  # leaves a second Gaussian waiting in both generators
    save_checkpoint(tmp_path, 1, random_state())
    expected = draw()
    draw()
    set_random_state(load_latest(tmp_path))
    assert draw() == expected
