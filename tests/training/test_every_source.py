"""Two training steps on every kind of source, and the same pixels from each lossless one."""

import numpy as np
import pytest
import torch
from PIL import Image

import training.train
from fastseq.video import read_frames, transcode
from training import prepare
from training.data.index import build_index, load_index
from training.data.shards import write_shards
from training.runs.log import read_log


def files(videos, folder):
    for name in ("a", "b"):
        transcode(videos / f"{name}.mp4", folder / f"{name}.mp4", crf=0)
    return folder


def pictures(videos, folder, ending="png"):
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number, frame in enumerate(read_frames(videos / f"{name}.mp4").numpy()):
            Image.fromarray(frame).save(folder / name / f"img_{number}.{ending}", lossless=True)
    return folder


def shards(videos, folder, source=files):
    inside = folder / "inside"
    inside.mkdir()
    write_shards(build_index(source(videos, inside)), folder / "shards", progress=False)
    return folder / "shards"


def mixed(videos, folder):
    """Files, pictures and shards below one folder."""
    for name, make in (("files", files), ("pictures", pictures)):
        (folder / name).mkdir()
        make(videos, folder / name)
    out = folder.parent / "tars"
    out.mkdir()
    for tar in shards(videos, out).glob("*.tar"):
        tar.rename(folder / tar.name)
    return folder


SOURCES = {
    "files": files,
    "png": pictures,
    "webp": lambda videos, folder: pictures(videos, folder, "webp"),
    "jpg": lambda videos, folder: pictures(videos, folder, "jpg"),
    "shards": shards,
    "shards of pictures": lambda videos, folder: shards(videos, folder, pictures),
    "mixed": mixed,
}


def train(folder, *options):
    values = [f"data.folder={folder}", "train.run_dir=run", "train.steps=2", "train.log_every=1"]
    assert training.train.main(["tiny.yaml", *values, *options]) == 0
    losses = [line["loss"] for line in read_log("run")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("kind", SOURCES)
def test_two_steps(kind, videos, recipe, tmp_path):
    (tmp_path / "source").mkdir()
    folder = SOURCES[kind](videos, tmp_path / "source")
    assert prepare.main([str(folder)]) == 0
    train(folder)
    if kind not in ("files", "jpg", "shards", "mixed"):  # without loss
        for record in load_index(folder).videos:
            name = "a" if record.frames == 30 else "b"
            assert torch.equal(read_frames(record.path), read_frames(videos / f"{name}.mp4"))


def test_two_steps_on_weighted_folders(videos, recipe, tmp_path):
    folders = []
    for name, make in (("one", files), ("two", pictures)):
        (tmp_path / name).mkdir()
        folders.append(make(videos, tmp_path / name))
        build_index(folders[-1])
    train(f"[{folders[0]},{folders[1]}]", "data.weights=[1,3]")
