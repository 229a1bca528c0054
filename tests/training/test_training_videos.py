"""The videos of a run, and test videos that are among them."""

import json
import shutil
from pathlib import Path

import pytest
from runs import RECIPE, squares

import training.train
from training import evaluate, train
from training.data.index import build_index
from training.runs.checkpoint import list_checkpoints
from training.runs.videos import TRAINING_VIDEOS, trained_on, write_training_videos

CLASSES = {"all": ["start", "end"]}


def label(folder, test: str, remark: str = "") -> None:
    """Boundaries for every video; those of ``test`` are test videos."""
    entries = {
        f"{name}.mp4": {"boundaries": [3], "split": "test" if name in test else "train"}
        for name in "abcd"
    }
    entries["d.mp4"]["remark"] = remark
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES, "videos": entries}))
    build_index(folder)


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A run on four videos without labels."""
    place = tmp_path_factory.mktemp("trained")
    folder = shutil.copytree(videos, place / "videos")
    shutil.copy(folder / "a.mp4", folder / "d.mp4")
    build_index(folder)
    (place / "tiny.yaml").write_text(RECIPE)
    options = [f"data.folder={folder}", f"train.run_dir={place / 'run'}", "train.steps=1"]
    assert train.main([str(place / "tiny.yaml"), *options]) == 0
    return place


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """That run, and its videos in the current folder, which is another one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def evaluated(run, capsys, *words: str) -> tuple[dict, str]:
    capsys.readouterr()
    assert evaluate.main([str(run), "--folder", "videos", *words]) == 0
    return json.loads((run / "evaluation.json").read_text()), capsys.readouterr().err


def test_test_videos_that_were_trained_on_are_named(run, capsys):
    label(Path("videos"), "bd")
    result, error = evaluated(run, capsys)
    assert result["trained_on"] == ["b.mp4", "d.mp4"]
    assert (
        "warning: 2 of 2 test videos were trained on: b.mp4, d.mp4; figures on them say nothing "
        "about new videos: train again without them\n"
    ) in error


def test_labels_to_be_checked_are_named(run, capsys):
    label(Path("videos"), "bd", remark="carried over from a.mp4: to be checked")
    result, error = evaluated(run, capsys)
    assert result["unchecked"] == ["d.mp4"]
    assert "1 of 2 test videos have labels to be checked: d.mp4\n" in error
    label(Path("videos"), "bd", remark="checked")
    result, error = evaluated(run, capsys)
    assert result["unchecked"] == []
    assert "to be checked" not in error


def test_new_test_videos_are_not_named(run, capsys):
    label(Path("videos"), "bd")
    file = run / TRAINING_VIDEOS
    content = json.loads(file.read_text())
    del content["videos"]["b.mp4"], content["videos"]["d.mp4"]
    file.write_text(json.dumps(content))
    result, error = evaluated(run, capsys)
    assert result["trained_on"] == []
    assert "trained on" not in error
    file.unlink()  # a run of an earlier version
    result, error = evaluated(run, capsys)
    assert "trained_on" not in result
    assert "trained on" not in error
    file.write_text("{")
    assert evaluate.main(["run", "--folder", "videos"]) == 2
    assert "training_videos.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["vclr", "sync"])
def test_by_every_protocol(run, capsys, protocol):
    entries = {
        f"{name}.mp4": {
            "action": "pour" if name in "ad" else "swing",
            "split": "test" if name in "bd" else "train",
            "sync": {"group": "one", "offset": 0},
        }
        for name in "abd"
    }
    entries["c.mp4"] = {"action": "swing"}
    Path("videos/labels.json").write_text(json.dumps({"videos": entries}))
    build_index("videos")
    result, error = evaluated(run, capsys, "--protocol", protocol)
    assert result["trained_on"] == ["b.mp4", "d.mp4"]
    assert "2 of 2 test videos were trained on: b.mp4, d.mp4" in error


def test_copies_links_and_other_videos_of_the_same_name(run, trained):
    class Video:
        def __init__(self, name, path, frames):
            self.id, self.path, self.frames = name, str(path), frames

    Path("link.mp4").symlink_to(trained / "videos/b.mp4")
    videos = [
        Video("link.mp4", "link.mp4", 12),
        Video("b.mp4", "/elsewhere/b.mp4", 12),  # the folder was moved
        Video("b.mp4", "/elsewhere/b.mp4", 13),  # another video
        Video("new.mp4", "/elsewhere/new.mp4", 12),
    ]
    assert trained_on(run, videos) == ["link.mp4", "b.mp4"]
    file = run / TRAINING_VIDEOS
    file.write_text(file.read_text().replace('"b.mp4"', '"b.avi"'))
    assert trained_on(run, [Video("b.avi.mp4", "/copies/b.avi.mp4", 12)]) == ["b.avi.mp4"]


@pytest.mark.parametrize("folders", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_shards_of_the_training_videos_and_the_reverse(tmp_path, folders, packed):
    class Video:
        def __init__(self, name, frames=12, prefix=""):
            self.id, self.path, self.frames = prefix + name, f"/elsewhere/{name}", frames

    files = ["sub/a.mp4", "b.x.avi", "pictures"]
    shards = [f"shard-00000{k}.tar/{key}" for k, key in enumerate(["sub/a.mp4", "b_x.avi"])]
    shards.append("shard-000000.tar/pictures")
    trained, scored = (shards, files) if packed else (files, shards)
    prefix = "one/" * (folders > 1)
    videos = [Video(name, prefix=prefix) for name in trained]
    write_training_videos(tmp_path, videos, resumed=False, folders=folders)
    for same in (scored, trained):
        assert trained_on(tmp_path, [Video(name) for name in same]) == same
    others = [Video(name, 13) for name in scored] + [
        Video("a.mp4"),
        Video("shard-000000.tar/a.mp4"),
    ]
    # Keys may occur in several tar files.
    others += [Video(name.replace(".tar/", "7.tar/")) for name in shards] if packed else []
    assert trained_on(tmp_path, others) == []


def test_a_resumed_run_adds_its_videos(recipe, whole, monkeypatch):
    def ids():
        return sorted(json.loads(Path("whole", TRAINING_VIDEOS).read_text())["videos"])

    def start(videos: range, *words: str) -> None:
        def loader(cfg, *more, **options):
            made = squares(cfg, *more, **options)
            for video, number in zip(made.items.videos, videos, strict=True):
                video.id = f"video{number}"
            return made

        monkeypatch.setattr(training.train, "training_loader", loader)
        assert train.main([recipe, "train.run_dir=whole", *words]) == 0

    first = [f"video{n}" for n in range(5)]
    assert ids() == first
    start(range(3, 8), "--resume")  # all steps are done: nothing is trained
    assert ids() == first
    list_checkpoints("whole/checkpoints")[-1].unlink()  # that of step 12; one of step 10 is left
    start(range(3, 8), "--resume")
    assert ids() == [f"video{n}" for n in range(8)]
    start(range(3, 8), "--overwrite")
    assert ids() == [f"video{n}" for n in range(3, 8)]
