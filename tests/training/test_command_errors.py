"""Wrong use of the commands that read a run: one clear line, exit status 2, no file changed."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import RECIPE
from safetensors.torch import load_file

from training import align, evaluate, export, extract, report, retrieve, train
from training.data.index import build_index
from training.demo import __main__ as demo
from training.demo import render
from training.evaluation import embed
from training.models import build_model, load_backbone_weights
from training.runs.checkpoint import list_checkpoints
from training.runs.model import load_run
from training.support import command

COMMANDS = {
    "evaluate": (evaluate.main, ["RUN"]),
    "report": (report.main, ["RUN"]),
    "extract": (extract.main, ["RUN", "--out", "out"]),
    "align": (align.main, ["videos/a.mp4", "videos/b.mp4", "--run", "RUN", "--out", "out"]),
    "retrieve": (retrieve.main, ["--run", "RUN", "--out", "out/sheet.png"]),
}


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A folder with a run of one step on three videos without labels, all in the split "train"."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(RECIPE)
    build_index(shutil.copytree(videos, folder / "videos"))
    places = [f"data.folder={folder / 'videos'}", f"train.run_dir={folder / 'run'}"]
    assert train.main([str(folder / "tiny.yaml"), *places, "train.steps=1"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of that folder to work in, with a user's file and the run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    Path("file").write_text("mine")
    return Path("run")


def one_line(capsys) -> str:
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert len(error.splitlines()) == 1
    return error


def no_config(run):
    (run / "config.yaml").unlink()


def other_config(run):
    (run / "config.yaml").write_text("learning_rate: 1\n")


def broken_config(run):
    (run / "config.yaml").write_text("optim: [broken\n")


def impossible_config(run):
    (run / "config.yaml").write_text(RECIPE.replace("size: 16}", "size: 18}"))


def other_model(run):
    (run / "config.yaml").write_text(RECIPE.replace("embedding_size: 16", "embedding_size: 8"))


def no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")


def foreign_checkpoint(run):
    (path,) = list_checkpoints(run / "checkpoints")
    torch.save([1, 2], path)


def no_folder(run):
    shutil.rmtree("videos")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "run is not a run"),
        (other_config, "unknown key 'learning_rate'"),
        (broken_config, "not valid YAML"),
        (impossible_config, "image_size must be a multiple of 16, got 18"),
        (other_model, "another model"),
        (no_checkpoint, "run has no checkpoint yet"),
        (foreign_checkpoint, "none of the 1 checkpoints"),
        (no_folder, "videos"),
    ],
)
def test_a_run_that_cannot_be_used(run, capsys, command, spoil, message):
    spoil(run)
    capsys.readouterr()
    main, arguments = COMMANDS[command]
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 2
    assert message in one_line(capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (extract.main, ["run", "--out", "file"]),
        (extract.main, ["run", "--out", "file/out"]),
        (align.main, ["videos/a.mp4", "videos/b.mp4", "--run", "run", "--out", "file"]),
        (retrieve.main, ["--run", "run", "--out", "file/sheet.png"]),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    run, capsys, monkeypatch, main, arguments
):
    def too_late(*args, **options):
        raise AssertionError("embedded before the output was looked at")

    monkeypatch.setattr(embed, "features_each", too_late)
    monkeypatch.setattr(retrieve, "split_videos", lambda index, split: index.videos)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "cannot be created" in one_line(capsys)
    assert Path("file").read_text() == "mine"


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # file modes do not bind root
    with pytest.raises(command.UserError, match=r"out is not writable; choose another folder"):
        command.make_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--queries", "0"], "at least 1, got 0"), (["--out", "sheet.jpg"], "must name a PNG file")],
)
def test_wrong_options_of_retrieve(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        retrieve.main(["--run", "run", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_split_or_a_folder_without_videos(run, capsys, tmp_path):
    capsys.readouterr()
    assert retrieve.main(["--run", "run"]) == 2
    assert "no videos in the split 'test', only in train" in one_line(capsys)
    (tmp_path / "empty").mkdir()
    build_index(tmp_path / "empty")
    assert evaluate.main(["run", "--folder", "empty"]) == 2
    assert "empty has no video that can be read" in one_line(capsys)
    assert evaluate.main(["run", "--folder", "file"]) == 2
    assert "file is not a folder" in one_line(capsys)


def test_videos_that_are_none(run, capsys):
    Path("zero.mp4").write_bytes(b"")
    Path("cut.mp4").write_bytes(Path("videos/a.mp4").read_bytes()[:400])
    for bad, message in [
        ("zero.mp4", "the file is empty (0 bytes)"),
        ("cut.mp4", "not a video file"),
        ("file", "not a video file"),
        ("videos", "the folder has no JPEG, PNG or WebP pictures"),
    ]:
        capsys.readouterr()
        assert align.main(["videos/a.mp4", bad, "--run", "run", "--out", "out"]) == 2
        error = one_line(capsys)
        assert bad in error
        assert message in error
    assert not Path("out").exists()


def test_export_makes_the_folder_and_takes_no_folder_for_a_file(run, capsys):
    assert export.main(["run", "new/model.safetensors"]) == 0
    assert Path("new/model.safetensors").stat().st_size > 1000
    capsys.readouterr()
    assert export.main(["run", "new", "--overwrite"]) == 2
    assert "new is a folder; name a file" in one_line(capsys)
    assert export.main(["run", "file/model.safetensors"]) == 2
    assert "cannot be created" in one_line(capsys)


def test_export_writes_what_the_ending_says(run, capsys):
    assert export.main(["run", "model.safetensors"]) == 0
    expected = load_file("model.safetensors")
    for name in ("model.pt", "model.pth", "MODEL.PT"):
        assert export.main(["run", name]) == 0
        state = torch.load(name, weights_only=True)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
    before = sorted(Path().iterdir())
    for name in ("model.onnx", "model.bin", "model", "model.npz", "model.safetensor"):
        capsys.readouterr()
        assert export.main(["run", name]) == 2
        assert "expected a file name that ends in one of .safetensors, .pt, .pth" in one_line(
            capsys
        )
    assert sorted(Path().iterdir()) == before


def test_weights_of_a_run_start_another_one(run):
    assert export.main(["run", "model.safetensors"]) == 0
    model, cfg = load_run("run")
    expected = model.backbone.state_dict()
    for path in ("model.safetensors", max(Path("run/checkpoints").glob("*.pt"))):
        backbone = build_model(cfg, load_weights=False).backbone
        assert str(path).endswith(".pt") == load_backbone_weights(backbone, path).taken.startswith(
            "model."
        )
        assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["av", "tensorboard"])
def test_training_without_an_extra_starts_no_run(run, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert train.main(["tiny.yaml", "data.folder=videos", "train.run_dir=new"]) == 2
    assert 'training needs: pip install "fastseq[train]"' in one_line(capsys)
    assert not Path("new").exists()


def test_a_missing_decoder_is_named_by_every_command(capsys):
    def read():
        raise ImportError('reading video needs PyAV: pip install "fastseq[video]"')

    assert command.run_command(read) == 2
    assert one_line(capsys) == 'error: reading video needs PyAV: pip install "fastseq[video]"'
    with pytest.raises(ModuleNotFoundError, match="bogus"):  # a bug keeps its traceback
        command.run_command(lambda: importlib.import_module("training.bogus"))


def test_a_finished_run_says_so(run, capsys, caplog):
    caplog.set_level("INFO")
    recipe = ["tiny.yaml", f"data.folder={Path('videos').resolve()}", "train.run_dir=run"]
    assert train.main([*recipe, "train.steps=1", "--resume"]) == 0
    assert "run: all 1 steps are done" in caplog.text


def test_ctrl_c_in_a_command(run, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "features_each", interrupted)
    capsys.readouterr()
    assert extract.main(["run", "--out", "out"]) == 130
    assert one_line(capsys) == "interrupted"


def test_the_demo_checks_its_options_before_it_renders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["optm.lr=1"]) == 2
    assert "Did you mean 'optim.lr'" in one_line(capsys)
    assert demo.main(["bogus"]) == 2
    assert "expected key=value" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    Path("file").write_text("mine")
    for out in ("file", "file/demo"):
        assert demo.main(["--out", out]) == 2
        assert "file" in one_line(capsys)
    with pytest.raises(SystemExit) as stopped:
        render.main(["file/videos"])
    assert stopped.value.code == 2
    assert "file" in capsys.readouterr().err


def test_ctrl_c_in_the_demo(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "render_dataset", interrupted)
    assert demo.main(["--out", str(tmp_path / "demo")]) == 130
    assert one_line(capsys) == "interrupted"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("align", "a.mp4 b.mp4 --run run --out out"),
        ("carl_code.__main__", "recipe config.yml --out mine.yaml"),
        ("compare", "--out out"),
        ("demo.__main__", "--out out"),
        ("export", "run model.safetensors"),
        ("labels", "pouring videos --dry-run"),
        ("memory", "recipes/carl.yaml --out out"),
        ("per_action", "recipes/carl.yaml data.folder=videos --out out"),
        ("prepare", "."),
        ("propagate", "videos --from a.mp4 --run run"),
        ("report", "run"),
        ("retrieve", "--run run --out out.png"),
        ("side_by_side", "run other --out out/page.html"),
        ("sweep", "recipes/carl.yaml --out out"),
        ("view", "videos"),
    ],
)
def test_torchrun_starts_no_command_of_one_process(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    main = importlib.import_module(f"training.{name}").main
    waits = []
    monkeypatch.setattr(command.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", "1")
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", "")
    assert waits == [command.START_SPREAD]  # so that torchrun does not end rank 0 before its line
    monkeypatch.setenv("RANK", "0")
    assert main(words.split()) == 2
    expected = "error: this command runs as one process, but WORLD_SIZE is 2; start it with python"
    assert one_line(capsys).startswith(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compare", "data.split_time=2 --methods carl --out out"),
        ("demo.__main__", "data.split_time=2 --out out"),
        ("demo.__main__", "data.split_time=2 --real . --out out"),
        ("per_action", "recipes/carl.yaml data.folder=videos data.split_time=2 --out out"),
    ],
)
def test_trainings_in_one_process_share_no_clips(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"training.{name}").main(words.split()) == 2
    error = one_line(capsys)
    assert "data.split_time: expected 1, because this command trains in one process" in error
    assert "torchrun --nproc-per-node 2 -m training.train" in error
    assert not list(tmp_path.iterdir())
