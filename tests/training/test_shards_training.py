"""A folder of shards is prepared and trained on like a folder of videos."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.loop.trainer
import training.train
from fastseq.video import VideoError, read_frames
from fastseq.video.source import pictures_in, read_bytes
from training import prepare
from training.data.index import StaleIndex, build_index, load_index
from training.data.samples import samples_of
from training.data.shards import write_shards
from training.runs.checkpoint import load_latest
from training.runs.log import read_log

RESUME = ["train.run_dir=run", "train.steps=2", "train.log_every=1", "--resume"]
LABELS = {
    "classes": {"all": ["before", "after"]},
    "videos": {
        "a.mp4": {"boundaries": [12], "unlabelled_from": 25, "trim": [2, 28]},
        "b.mp4": {"phases": [0] * 6 + [1] * 6, "split": "test", "view": "ego"},
    },
}


def by_key(folder) -> dict:
    """Name without extension and tar -> record."""
    return {
        Path(record.id).name.removesuffix(".mp4"): record for record in load_index(folder).videos
    }


def check_training(folder) -> None:
    """Two steps on the folder give numbers."""
    options = [f"data.folder={folder}", "train.run_dir=run", "train.steps=2", "train.log_every=1"]
    assert training.train.main(["tiny.yaml", *options]) == 0
    assert np.isfinite([line["loss"] for line in read_log("run")]).all()
    assert len(read_log("run")) == 2


def test_shards_of_a_labelled_folder(video_folder, capsys):
    (video_folder / "labels.json").write_text(json.dumps(LABELS))
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, 1e-6, progress=False)
    assert prepare.main([str(out)]) == 0
    assert len(list(out.glob("*.tar"))) == 3
    alone, inside = by_key(video_folder), by_key(out)
    assert inside.keys() == alone.keys() == {"a", "b", "c"}
    assert sorted(record.shard for record in inside.values()) == [0, 1, 2]
    for key, record in inside.items():
        for name in ("frames", "fps", "width", "height", "codec", "split", "view", "trim", "gaps"):
            assert getattr(record, name) == getattr(alone[key], name), name
        assert (record.phases is None) == (alone[key].phases is None)
        assert np.array_equal(record.phases, alone[key].phases)
        assert torch.equal(read_frames(record.path), read_frames(alone[key].path))
    check_training(out)


def test_shards_of_several_class_sets(video_folder):
    labels = {
        "class_sets": {"two": {"all": ["a", "b"]}, "three": {"all": ["a", "b", "c"]}},
        "videos": {
            "a.mp4": {
                "labels": {
                    "two": {"boundaries": [9], "split": "val"},
                    "three": {"segments": [[3, 5, "c"], [5, 9, 0]]},
                }
            },
            "b.mp4": {"split": "test", "labels": {"three": {"boundaries": [2, 4]}}},
        },
    }
    (video_folder / "labels.json").write_text(json.dumps(labels))
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, progress=False)
    build_index(out)
    for class_set, classes in labels["class_sets"].items():
        indexes = [load_index(folder, class_set=class_set) for folder in (video_folder, out)]
        found = [{Path(one.id).name: one for one in index.videos} for index in indexes]
        assert indexes[1].classes == classes
        for name, alone in found[0].items():
            assert found[1][name].split == alone.split
            assert np.array_equal(found[1][name].phases, alone.phases)


def test_prepare_writes_and_prepares_shards(video_folder):
    out = video_folder.parent / "shards"
    assert prepare.main([str(video_folder), "--shards", str(out), "--shard-size", "1"]) == 0
    assert {record.id for record in load_index(out).videos} == {
        f"shard-000000.tar/{key}.mp4" for key in "abc"
    }


@pytest.fixture
def pictures(video_folder, tmp_path):
    """Folders of the frames of the videos a and b, as jpg."""
    folder = tmp_path / "pictures"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number, frame in enumerate(read_frames(video_folder / f"{name}.mp4").numpy()):
            Image.fromarray(frame).save(folder / name / f"{number:05d}.jpg", quality=95)
    return folder


def test_shards_of_pictures(pictures, tmp_path):
    out = tmp_path / "shards"
    write_shards(build_index(pictures, fps=10), out, progress=False)
    assert prepare.main([str(out)]) == 0
    alone, inside = by_key(pictures), by_key(out)
    assert inside.keys() == alone.keys() == {"a", "b"}
    for key, record in inside.items():
        assert (record.frames, record.fps) == ({"a": 30, "b": 12}[key], 10)
        assert torch.equal(read_frames(record.path), read_frames(alone[key].path))
    check_training(out)


def test_shards_of_others(video_folder, pictures, tmp_path, capsys):
    """A tar of a video and of pictures with JSON, not written by this project; and a broken one."""
    folder = tmp_path / "others"
    folder.mkdir()
    entries = {"x": {"split": "test", "caption": "a square"}, "y": {"fps": 5, "view": "exo"}}
    for key, entry in entries.items():
        (tmp_path / f"{key}.json").write_text(json.dumps(entry))
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        tar.add(tmp_path / "x.json", "x.json")
        tar.add(video_folder / "a.mp4", "x.mp4")
        for number, path in enumerate(sorted((pictures / "b").iterdir())):
            tar.add(path, f"y.{number}.jpg")
        tar.add(tmp_path / "y.json", "y.json")
        tar.add(tmp_path / "y.json", "y.txt")
    (folder / "broken.tar").write_bytes((folder / "train-0.tar").read_bytes()[:-20_000])
    assert prepare.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "members of shards that are not used: 1 .txt" in out
    assert "not looked into: broken.tar: " in out
    found = {record.id: record for record in load_index(folder).videos}
    assert found.keys() == {"train-0.tar/x.mp4", "train-0.tar/y"}
    assert found["train-0.tar/x.mp4"].split == "test"
    assert (found["train-0.tar/y"].fps, found["train-0.tar/y"].view) == (5, "exo")
    assert found["train-0.tar/y"].frames == 12


def test_a_shard_that_has_changed(video_folder):
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, progress=False)
    build_index(out)
    tar = out / "shard-000000.tar"
    assert len(samples_of(tar)) == 3
    path = load_index(out).videos[0].path
    tar.rename(out / "away")
    for function in (read_frames, read_bytes, pictures_in):
        with pytest.raises(VideoError, match=r"shard-000000\.tar is missing$"):
            function(path)
    (out / "away").rename(tar)
    with tarfile.open(tar, "w") as file:
        file.add(video_folder / "a.mp4", "a.mp4")
    with pytest.raises(StaleIndex, match=r"shard-000000\.tar"):
        load_index(out)


def test_labels_of_a_shard_that_is_gone_are_not_used(video_folder, capsys):
    (video_folder / "labels.json").write_text(json.dumps(LABELS))
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, 1e-6, progress=False)
    (gone,) = [tar for tar in out.glob("*.tar") if samples_of(tar)[0].key == "b"]
    gone.unlink()
    assert prepare.main([str(out)]) == 0
    said = capsys.readouterr().out
    assert f"labels not used: 1 video\n  {gone.name} is gone (1): {gone.name}/b.mp4\n" in said
    assert by_key(out).keys() == {"a", "c"}
    assert prepare.main([str(out), "--transcode", str(out.parent / "copies")]) == 0
    assert "labels not copied: 1 video" in capsys.readouterr().out


def test_labels_of_a_video_that_its_shard_lacks(video_folder, capsys):
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, 1e-6, progress=False)
    one, two = sorted(out.glob("*.tar"))[:2]
    key = samples_of(two)[0].name
    (out / "labels.json").write_text(json.dumps({"videos": {f"{one.name}/{key}": {}}}))
    assert prepare.main([str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{one.name} has no member of this name; remove the entry" in said
    assert two.name not in said
    one.write_bytes(one.read_bytes()[:1000])
    assert prepare.main([str(out)]) == 2
    assert f"{one.name} has no video or cannot be read: write it" in capsys.readouterr().err


def test_a_run_on_shards_resumes_on_its_number_of_ranks(video_folder, monkeypatch, capsys):
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, progress=False)
    build_index(out)
    check_training(out)

    def of_two_ranks(*arguments, **options):
        state = load_latest(*arguments, **options)
        state["ranks"] = [state["ranks"][0]] * 2
        state["ranks"][0]["loader"]["order"]["world_size"] = 2
        return state

    monkeypatch.setattr(training.loop.trainer, "load_latest", of_two_ranks)
    capsys.readouterr()
    assert training.train.main(["tiny.yaml", f"data.folder={out}", *RESUME]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert "reads shards on 2 ranks, and this is a resume on 1" in line
    assert "`torchrun --nproc-per-node=2`" in line
    assert "model.weights=run model.weights_parts=all" in line


def test_labels_in_a_tar_are_checked_before_videos_are_copied(video_folder, capsys):
    (video_folder / "labels.json").write_text(json.dumps(LABELS))
    out = video_folder.parent / "shards"
    write_shards(build_index(video_folder), out, progress=False)
    (out / "labels.json").unlink()
    for words in ([], ["--transcode", str(out.parent / "copies")]):
        assert prepare.main([str(out), *words]) == 2
        error = capsys.readouterr().err
        assert "there is no labels file, which has the names of the phases" in error
        assert f'or write {out}/labels.json with {{"classes": {{"all": ["first' in error
        assert "a.mp4: has phases, but" in error
    assert not (out.parent / "copies").exists()
    wrong = b'{"unit": "seconds", "trim": ["a", 3]}'
    with tarfile.open(out / "shard-000000.tar", "w") as tar:
        tar.add(video_folder / "a.mp4", "a.mp4")
        member = tarfile.TarInfo("a.json")
        member.size = len(wrong)
        tar.addfile(member, io.BytesIO(wrong))
    assert prepare.main([str(out), "--transcode", str(out.parent / "copies")]) == 2
    error = capsys.readouterr().err
    assert 'a.mp4: trim is ["a", 3], expected the times' in error
    assert "no labels file" not in error
