import hashlib
import json
import os
import random
import resource

import numpy as np
import pytest
import torch

from training.runs import checkpoint
from training.runs.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_latest,
    random_state,
    save_checkpoint,
    set_random_state,
)


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")


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
    (tmp_path / ".step_00000002.pt.1.part").write_bytes(b"half")
    assert load_latest(tmp_path)["step"] == 1
    assert len(list_checkpoints(tmp_path)) == 1
    save_checkpoint(tmp_path, 2, state(2))
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt"]


def test_a_full_disk_raises_and_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))

    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(tmp_path, 2, state(2))
    assert str(error.value).startswith(
        f"{tmp_path}/step_00000002.pt cannot be written (No space left on device); "
        "step_00000001.pt is intact. Free some space"
    )
    assert names(tmp_path) == ["step_00000001.pt"]
    assert load_latest(tmp_path)["step"] == 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_fills_up_later_leaves_the_one_before(tmp_path, monkeypatch, function):
    """Some file systems find out only then."""
    save_checkpoint(tmp_path, 1, state(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(CheckpointError, match=r"No space left on device\); step_00000001.pt"):
            save_checkpoint(tmp_path, 2, state(2))
    assert names(tmp_path) == ["step_00000001.pt"]
    assert load_latest(tmp_path)["step"] == 1
    save_checkpoint(tmp_path, 2, state(2))
    assert load_latest(tmp_path)["step"] == 2


def test_a_file_that_outgrows_the_disk(tmp_path):
    """A true failure in the middle of torch's writer: the process may write 100 kB at most."""
    save_checkpoint(tmp_path, 1, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"\(File too large\); step_00000001.pt is intact"
        ):
            save_checkpoint(tmp_path, 2, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step_00000001.pt"]
    assert load_latest(tmp_path)["step"] == 1


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """File modes do not bind root, so that the refusal is made up for it."""
    save_checkpoint(tmp_path, 1, state(1))
    if os.geteuid():
        tmp_path.chmod(0o555)
    else:
        monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(CheckpointError, match=r"Permission denied\); step_00000001.pt is intact"):
        save_checkpoint(tmp_path, 2, state(2))
    tmp_path.chmod(0o755)
    monkeypatch.undo()
    assert load_latest(tmp_path)["step"] == 1


def refuse(path, mode="r"):
    if "w" in mode:
        raise PermissionError(13, "Permission denied", str(path))
    return open(path, mode)


def test_the_manifest_has_the_sums_of_the_files(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(manifest) == ["step_00000002.pt", "step_00000003.pt"]
    for name, entry in manifest.items():
        content = (tmp_path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_one_wrong_bit_is_found(tmp_path, caplog):
    """Torch would load it."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    newest = tmp_path / "step_00000002.pt"
    content = bytearray(newest.read_bytes())
    place = content.index(torch.full((1000,), 2.0).numpy().tobytes())
    content[place + 2] ^= 1
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["weights"][0] != 2
    assert load_latest(tmp_path)["step"] == 1
    assert "step_00000002.pt cannot be read (SHA-256 is not that of manifest.json)" in caplog.text


def test_a_step_that_is_written_again_is_valid_at_every_moment(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    for moment in range(1, 6):  # of fsync and replace, of the checkpoint and of the manifest
        crash_at(monkeypatch, moment)
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, 1, state(10 + moment))
        monkeypatch.undo()
        assert load_latest(tmp_path)["step"] in {1, *range(11, 11 + moment)}


def crash_at(monkeypatch, moment: int) -> None:
    calls = iter(range(1, 100))

    def counted(original):
        def call(*args):
            if next(calls) == moment:
                raise Crash
            return original(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def test_without_a_manifest_a_checkpoint_is_judged_by_loading_it(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    for content in ("", None):
        manifest = tmp_path / "manifest.json"
        manifest.unlink() if content is None else manifest.write_text(content)
        assert load_latest(tmp_path)["step"] == 1


def test_a_damaged_file_is_reported_and_passed_over(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    newest = tmp_path / "step_00000002.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    assert load_latest(tmp_path)["step"] == 1
    assert "step_00000002.pt cannot be read" in caplog.text
    (tmp_path / "step_00000001.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
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
