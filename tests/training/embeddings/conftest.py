"""A run with two checkpoints on labelled videos, and what is decoded of them."""

import json
import shutil
from pathlib import Path

import pytest
from runs import RECIPE
from test_left_out import NAMES, encode

from training import train
from training.data.index import build_index

OPTIONS = ["train.steps=2", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with labelled videos and a run of two steps with both checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "videos").mkdir()
    entries = {}
    for seed, name in enumerate(NAMES):
        encode(folder / "videos" / f"{name}.mp4", seed)
        entries[f"{name}.mp4"] = {"split": name[:-1], "boundaries": [10, 20 - seed]}
    labels = {"classes": {"all": ["x", "y", "z"]}, "videos": entries}
    (folder / "videos" / "labels.json").write_text(json.dumps(labels))
    build_index(folder / "videos")
    (folder / "tiny.yaml").write_text(RECIPE)
    places = [f"data.folder={folder / 'videos'}", f"train.run_dir={folder / 'run'}"]
    assert train.main([str(folder / "tiny.yaml"), *places, *OPTIONS]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of that folder to work in; the videos keep their times of modification."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return Path("run")


@pytest.fixture
def decoded(monkeypatch):
    """The ids of the videos that are decoded from now on."""
    from training.data import dataset

    ids, load_videos = [], dataset.load_videos

    def noted(records, *arguments, **options):
        ids.extend(record.id for record in records)
        return load_videos(records, *arguments, **options)

    monkeypatch.setattr(dataset, "load_videos", noted)
    return ids
