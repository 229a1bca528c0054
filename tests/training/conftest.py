import shutil

import numpy as np
import pytest
from narrow import NARROW_CNN
from runs import RECIPE, squares

import training.train
from fastseq.video import write_video
from training.data.index import build_index
from training.models import small_cnn


def place_recipe(folder, monkeypatch) -> str:
    monkeypatch.chdir(folder)
    # All frames at once, which is faster; test_resume.py trains in chunks.
    assert "chunk_frames: 20" in RECIPE
    (folder / "tiny.yaml").write_text(RECIPE.replace("chunk_frames: 20", "chunk_frames: 0"))
    monkeypatch.setattr(training.train, "training_loader", squares)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    return "tiny.yaml"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return place_recipe(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of `recipe`; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        recipe = place_recipe(folder, patch)
        assert training.train.main([recipe, "train.run_dir=run"]) == 0
    return folder / "run"


@pytest.fixture
def whole(recipe, finished_run):
    """That run, as `whole` in the current folder."""
    shutil.copytree(finished_run, "whole")
    return "whole"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Three real video files."""
    folder = tmp_path_factory.mktemp("three") / "videos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, length in (("a", 30), ("b", 12), ("c", 6)):  # c is shorter than a view
        background = rng.integers(0, 200, (32, 48, 3), dtype=np.uint8)
        frames = np.repeat(background[None], length, 0)
        for t in range(length):
            frames[t, 4:20, t : t + 12] = 255
        write_video(folder / f"{name}.mp4", frames, 25)
    return folder


@pytest.fixture
def video_folder(videos, tmp_path, monkeypatch):
    """A copy of the videos with an index, and a recipe to train on them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    build_index(folder)
    return folder
