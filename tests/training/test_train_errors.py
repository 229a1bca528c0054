import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from runs import SquareEngine, numbers, same, squares, weights

import training.loop.objectives
import training.loop.trainer
import training.train
from fastseq.video import VideoError
from training.data.index import build_index
from training.runs.checkpoint import CheckpointError, list_checkpoints
from training.runs.log import read_log
from training.runs.model import load_run
from training.train import main


def contents(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_resume_refuses_another_configuration(recipe, capsys):
    main([recipe, "train.run_dir=run", "train.steps=2"])
    before = contents("run")
    assert main([recipe, "train.run_dir=run", "train.steps=3", "optim.lr=0.1", "--resume"]) == 2
    expected = "other values: optim.lr = 0.001 (now 0.1), train.steps = 2 (now 3). Use those"
    assert expected in capsys.readouterr().err
    assert contents("run") == before
    arguments = [recipe, "train.run_dir=run", "train.steps=2", "train.log_every=1", "--resume"]
    assert main(arguments) == 0
    assert main([recipe, "train.run_dir=nowhere", "--resume"]) == 2
    assert "no run in nowhere" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten_unasked(recipe, capsys):
    main([recipe, "train.run_dir=run", "train.steps=5"])
    evaluated = ["evaluation.json", "report.html", "retrieval.png", "pictures/similarity.png"]
    mine = ["notes.txt", "figures/loss.png"]
    for name in evaluated + mine:
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).write_text(name)
    before = contents("run")
    assert main([recipe, "train.run_dir=run"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    wrong = ["loss.scl.temperature=0", "--overwrite"]
    assert main([recipe, "train.run_dir=run", *wrong]) == 2
    assert contents("run") == before
    assert main([recipe, "train.run_dir=run", "train.steps=4", "--overwrite"]) == 0
    assert [p.name for p in list_checkpoints("run/checkpoints")] == ["step_00000004.pt"]
    assert not any(Path("run", name).exists() for name in [*evaluated, "pictures"])
    assert all(Path("run", name).read_text() == name for name in mine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml", "optm.lr=1"], "Did you mean 'optim.lr'"),
        (["missing.yaml"], "missing.yaml does not exist"),
        (["tiny.yaml", "data.folder="], "data.folder"),
        (["tiny.yaml", "model.weights=none.pt"], "none.pt does not exist"),
        (["tiny.yaml", "train.device=cuda:99"], "train.device: 'cuda:99' cannot be used here"),
        (["tiny.yaml", "train.device=gpu"], "expected auto, cpu, cuda or cuda:N"),
        (
            ["tiny.yaml", "train.device=meta"],
            "train.device: 'meta'",
        ),  # stores no numbers
        (["tiny.yaml", "loss.scl.temperature=0"], "loss: scl_loss: temperature must be"),
        (["tiny.yaml", "loss.scl.variance=nan"], "loss: scl_loss: variance must be"),
        (["tiny.yaml", "loss.scl.backend=fast"], "unknown backend 'fast'"),
        (["tiny.yaml", "train.run_dir=tiny.yaml"], "tiny.yaml is a file"),
        (["tiny.yaml", "train.run_dir=tiny.yaml/run"], "tiny.yaml is a file"),
    ],
)
def test_wrong_requests_exit_with_2(recipe, capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert os.listdir() == ["tiny.yaml"]


def test_a_run_directory_that_cannot_be_written_to_exits_with_2(recipe, monkeypatch, capsys):
    with monkeypatch.context() as patch:  # file modes do not bind root
        patch.setattr(os, "access", lambda path, mode: False)
        assert main([recipe, "train.run_dir=run"]) == 2
    assert "run cannot be written to" in capsys.readouterr().err

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "run")

    with monkeypatch.context() as patch:  # a file system that refuses only the actual write
        patch.setattr(Path, "mkdir", refuse)
        assert main([recipe, "train.run_dir=run"]) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert os.listdir() == ["tiny.yaml"]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def test_resume_takes_the_checkpoint_before_a_damaged_one(recipe, whole, caplog):
    caplog.set_level("INFO")
    shutil.copytree(whole, "run")
    newest = Path("run/checkpoints/step_00000012.pt")
    damage(newest)
    assert main([recipe, "train.run_dir=run", "--resume"]) == 0
    assert "step_00000012.pt cannot be read" in caplog.text
    assert "steps 10 to 12" in caplog.text
    assert same(weights("run"), weights("whole"))
    assert numbers("run") == numbers("whole")
    torch.save({"step": 12, "weights": torch.zeros(3)}, newest)  # written by another program
    Path("run/checkpoints/manifest.json").unlink()
    assert main([recipe, "train.run_dir=run", "--resume"]) == 0
    assert "step_00000012.pt is not a checkpoint of a run" in caplog.text
    assert same(weights("run"), weights("whole"))


def test_without_a_readable_checkpoint_nothing_is_changed(recipe, whole, capsys):
    shutil.copytree(whole, "run")
    for path in list_checkpoints("run/checkpoints"):
        damage(path)
    before = contents("run")
    assert main([recipe, "train.run_dir=run", "train.log_every=1", "--resume"]) == 2
    assert "none of the 2 checkpoints in run/checkpoints can be read" in capsys.readouterr().err
    assert contents("run") == before
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        load_run("run")


def test_weights_of_another_model_are_named_in_one_line(recipe, capsys):
    main([recipe, "train.run_dir=run", "train.steps=1"])
    options = ["train.steps=1", "model.embedding_size=8"]
    main([recipe, "train.run_dir=other", *options])
    for path in list_checkpoints("run/checkpoints"):
        Path("other/checkpoints", path.name).write_bytes(path.read_bytes())
    Path("other/checkpoints/manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"^.*another model than config\.yaml.*size mismatch.*$"
    ):
        load_run("other")
    before = contents("other")
    assert main([recipe, "train.run_dir=other", *options, "--resume"]) == 2
    assert "another model" in capsys.readouterr().err
    assert contents("other") == before


def broken_loss(bad_steps, monkeypatch):
    calls = iter(range(1000))
    original = training.loop.objectives.fastseq.scl_loss

    def loss(*args, **options):
        if not args[0].requires_grad:  # the check of the options before the run
            return original(*args, **options)
        factor = float("nan") if next(calls) in bad_steps else 1.0
        return original(*args, **options) * factor

    monkeypatch.setattr(training.loop.objectives.fastseq, "scl_loss", loss)


def test_steps_without_a_finite_loss_are_skipped(recipe, monkeypatch, capsys):
    broken_loss({2, 3, 6}, monkeypatch)
    assert main([recipe, "train.run_dir=run", "train.log_every=1", "train.max_nonfinite=3"]) == 0
    lines = read_log("run")
    assert [line["skipped"] for line in lines[:8]] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [line["loss"] is None for line in lines[:8]] == [i in (2, 3, 6) for i in range(8)]
    assert all(torch.isfinite(value).all() for value in weights("run").values())
    assert "step 3: loss nan" in capsys.readouterr().err
    videos = {line["step"]: line["nonfinite"] for line in lines if "nonfinite" in line}
    assert set(videos) == {3, 4, 7}
    batches = list(squares(load_run("run")[1]).stream(12))
    for step, skipped in videos.items():
        assert skipped == [{"step": step, "videos": batches[step - 1]["ids"]}]


def test_a_skipped_step_leaves_the_weights(recipe, monkeypatch):
    broken_loss({0, 1}, monkeypatch)
    main([recipe, "train.run_dir=run", "train.steps=2"])
    trained, initial = weights("run"), load_run("run", untrained=True)[0].named_parameters()
    assert all(torch.equal(trained[key], value) for key, value in initial)
    # Batch norms do not change either, since their statistics may be non-finite.
    assert trained["projection.1.num_batches_tracked"] == 0
    assert torch.equal(trained["projection.1.running_var"], torch.ones(16))


def test_training_stops_when_the_loss_stays_not_finite(recipe, monkeypatch, capsys):
    broken_loss(range(6, 1000), monkeypatch)
    assert main([recipe, "train.run_dir=run", "train.max_nonfinite=4"]) == 1
    assert "not finite in 4 steps in a row, up to step 10" in capsys.readouterr().err
    assert list_checkpoints("run/checkpoints")[-1].name == "step_00000005.pt"
    last = read_log("run")[-1]  # written although step 10 would not be logged
    assert [skipped["step"] for skipped in last["nonfinite"]] == [9, 10]
    assert last["step"] == 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(
    recipe, whole, monkeypatch, capsys, number, status
):
    original = training.loop.trainer.Trainer._train_step

    def train_step(self, batch, rate):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return original(self, batch, rate)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.trainer.Trainer, "_train_step", train_step)
        assert main([recipe, "train.run_dir=run"]) == status
    goes_on = f"  python -m training.train {recipe} train.run_dir=run --resume\n"
    assert capsys.readouterr().err.endswith(f"stopped; continue with --resume: run\n{goes_on}")
    assert list_checkpoints("run/checkpoints")[-1].name == "step_00000003.pt"
    assert signal.getsignal(number) == handler
    assert main([recipe, "train.run_dir=run", "--resume"]) == 0
    assert same(weights("run"), weights("whole"))


def test_ctrl_c_before_the_first_step(recipe, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.train, "training_loader", interrupted)
    assert main([recipe, "train.run_dir=run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert os.listdir() == ["tiny.yaml"]


def test_a_second_ctrl_c_does_not_wait_for_a_checkpoint(recipe, monkeypatch, capsys):
    original = training.loop.trainer.Trainer._train_step

    def train_step(self, batch, rate):
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, rate)

    monkeypatch.setattr(training.loop.trainer.Trainer, "_train_step", train_step)
    assert main([recipe, "train.run_dir=run"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert [path.name for path in list_checkpoints("run/checkpoints")] == ["step_00000005.pt"]


def test_load_run_says_what_is_missing(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run"):
        load_run(tmp_path)
    main([recipe, "train.run_dir=run", "train.steps=1"])
    for path in list_checkpoints("run/checkpoints"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        load_run("run")


def test_a_folder_that_is_not_ready_exits_with_2(video_folder, capsys):
    assert main(["tiny.yaml", "data.train_split=val"]) == 2
    assert "no videos in the split 'val', only in train" in capsys.readouterr().err
    assert main(["tiny.yaml", "data.train_split=trian", "--dry-run"]) == 2
    assert "no split 'trian', did you mean 'train'?" in capsys.readouterr().err
    (video_folder / "fastseq_index.sqlite").unlink()
    assert main(["tiny.yaml"]) == 2
    assert "training.prepare" in capsys.readouterr().err
    # The folder is checked before the weights.
    assert main(["tiny.yaml", "data.folder=clipz", "model.weights=nowhere.pth"]) == 2
    assert "clipz is not a folder" in capsys.readouterr().err
    assert not Path("runs").exists()


def spoil(path: Path) -> bytes:
    """Make a file unreadable that seems unchanged. Returns its former content."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return content


def test_videos_that_cannot_be_read_while_training_are_listed(video_folder, capsys):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        spoil(video_folder / name)
    steps = ["train.run_dir=run", "train.steps=4", "data.workers=1"]
    assert main(["tiny.yaml", *steps]) == 1
    error = capsys.readouterr().err
    assert "3 of 3 videos cannot be read, nothing is left to train on:" in error
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        assert f"\n  {name}: not a video file" in error
    assert "--verify" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_training_goes_on_without_a_bad_video(video_folder, caplog, capsys, cache):
    caplog.set_level("INFO")
    (video_folder / "zero.mp4").write_bytes(b"")
    build_index(video_folder)  # leaves that one out
    spoil(video_folder / "a.mp4")
    options = ["tiny.yaml", "train.run_dir=run", f"data.cache={cache}"]
    assert main([*options, "train.steps=4"]) == 3
    last = caplog.text[caplog.text.index("1 file was left out when the folder was prepared") :]
    assert "1 video could not be read and had to be left out:" in last
    assert "  a.mp4: not a video file" in last
    assert read_log("run")[-1]["bad_videos"] == 1
    error = capsys.readouterr().err
    assert "left_out=1" in error
    (line,) = [line for line in re.split("[\r\n]", error) if "left out" in line]
    assert re.fullmatch(r"left out a.mp4: not a video file.* \(1 of 3 videos\)", line)
    assert "RuntimeWarning" not in error
    caplog.clear()  # a resumed run knows it without checking again
    assert main([*options, "train.steps=4", "--resume"]) == 3
    assert "  a.mp4: not a video file" in caplog.text


def test_files_that_prepare_left_out_are_counted_and_no_more(video_folder, caplog):
    caplog.set_level("INFO")
    for name in ("zero.mp4", "nought.mp4"):
        (video_folder / name).write_bytes(b"")
    build_index(video_folder)
    assert main(["tiny.yaml", "train.run_dir=run", "train.steps=1"]) == 0
    assert "2 files were left out when the folder was prepared" in caplog.text
    assert "could not be read" not in caplog.text


def test_videos_that_went_away_together_are_not_remembered(recipe, whole, monkeypatch, capsys):
    """A disk that disappears takes the whole batch with it; --resume reads all of it again."""
    read, reads, gone = SquareEngine.read, iter(range(1000)), iter("01")

    def read_or_fail(self, readings):
        if next(reads) >= 7:
            raise VideoError(next(gone), "No such file or directory")
        return read(self, readings)

    monkeypatch.setattr(SquareEngine, "read", read_or_fail)
    monkeypatch.setattr("fastseq.video.loader.MAX_BAD", 1)
    options = [recipe, "train.checkpoint_every=100", "train.run_dir=run"]
    assert main(options) == 1
    error = capsys.readouterr().err
    assert "left out video0" in error
    assert "2 of 5 videos cannot be read, more than 1:" in error
    monkeypatch.setattr(SquareEngine, "read", read)
    assert main([*options, "--resume"]) == 0
    assert same(weights("run"), weights("whole"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_bad_videos_ended_goes_on_once_they_are_back(
    recipe, monkeypatch, capsys, accumulate
):
    options = [recipe, f"train.accumulate={accumulate}", "train.checkpoint_every=100"]
    options.append(f"train.steps={12 // accumulate}")
    assert main([*options, "train.run_dir=whole"]) == 0
    read, gone = SquareEngine.read, iter([False] * 7 + [True])

    def read_or_fail(self, readings):
        if next(gone, False):
            raise VideoError(readings[0].path, "No such file or directory")
        return read(self, readings)

    monkeypatch.setattr(SquareEngine, "read", read_or_fail)
    monkeypatch.setattr("fastseq.video.loader.MAX_BAD", 0)
    options.append("train.run_dir=run")
    assert main(options) == 1
    assert "1 of 5 videos cannot be read, more than 0:" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints("run/checkpoints")] == [
        f"step_{7 // accumulate:08}.pt"
    ]
    assert main([*options, "--resume"]) == 0
    assert same(weights("run"), weights("whole"))
    assert numbers("run") == numbers("whole")
