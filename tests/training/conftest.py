import shutil

import numpy as np
import pytest
from runs import RECIPE, squares

import training.train
from fastseq.video import write_video
from training.data.index import build_index


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(training.train, "training_loader", squares)
    return "tiny.yaml"


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
