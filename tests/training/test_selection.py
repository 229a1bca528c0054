"""Several folders, their weights, and filters by action, view and split."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import RECIPE

from fastseq.video import ByShard, Mixture
from training.data import dataset, selection
from training.data.features import FeatureStore
from training.data.index import StaleIndex, build_index
from training.loop.dry_run import folder_lines
from training.recipe.load import load_config
from training.recipe.schema import plain_config
from training.runs.model import initial_model
from training.support.command import UserError
from training.train import main, training_loader

LABELS = {
    "one": {
        "a.mp4": {"action": "golf_swing", "view": "ego"},
        "b.mp4": {"action": "golf_swing", "view": "exo"},
        "c.mp4": {"action": "squat", "view": "ego", "split": "test"},
    },
    "two": {
        "a.mp4": {"action": "golf_swing", "view": "exo"},
        "b.mp4": {"action": "squat", "view": "exo"},
        "c.mp4": {"action": "squat", "view": "exo", "split": "test"},
    },
}

NO_TEST = "no video is in the test split 'test': the run can be trained"


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    place = tmp_path_factory.mktemp("folders")
    for name, labels in LABELS.items():
        shutil.copytree(videos, place / name)
        (place / name / "labels.json").write_text(json.dumps({"videos": labels}))
        build_index(place / name)
    return place


@pytest.fixture
def folders(prepared, tmp_path, monkeypatch):
    """The folders "one" and "two" in the current folder, and a recipe for both."""
    monkeypatch.chdir(tmp_path)
    for name in LABELS:
        (tmp_path / name).symlink_to(prepared / name)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("folder: videos", "folder: [one, two]"))
    return tmp_path


def ids(index):
    return [video.id for video in index.videos]


def opened(*overrides, **options):
    return selection.open_index(load_config("tiny.yaml", overrides), **options)


def test_videos_of_several_folders_have_their_folder_in_their_names(folders):
    index = opened()
    names = ["a.mp4", "b.mp4", "c.mp4"]
    assert ids(index) == [f"{folder}/{name}" for folder in LABELS for name in names]
    assert [video.source for video in index.videos] == [0, 0, 0, 1, 1, 1]
    assert ids(opened("data.folder=two")) == names
    assert ids(opened(folder="one")) == names


def test_filters_leave_the_videos_that_pass_all_of_them(folders):
    assert ids(opened("data.action=squat")) == ["one/c.mp4", "two/b.mp4", "two/c.mp4"]
    views = "data.where.view=[ego,exo]"
    assert ids(opened(views, "data.where.action=golf_swing", "data.where.split=train")) == [
        "one/a.mp4",
        "one/b.mp4",
        "two/a.mp4",
    ]
    index = opened("data.action=squat", "data.where.view=ego")
    assert ids(index) == ["one/c.mp4"]
    assert index.counts == "6 videos, 3 after data.action=squat, 1 after data.where.view=ego"
    assert ids(opened("data.action=squat", folder="one")) == ["c.mp4"]  # in evaluation too


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.action=golfswing"],
            "data.action: no video of .*one and .*two has the action 'golfswing'; there are "
            r"golf_swing \(3\), squat \(3\). Did you mean 'golf_swing'\?",
        ),
        (["data.where.view=[ego,top]"], r"has the view 'top'; there are ego \(2\), exo \(4\)\.$"),
        (["data.where.split=val"], r"has the split 'val'; there are test \(2\), train \(4\)"),
        (
            ["data.action=squat", "data.where.split=train", "data.where.view=ego"],
            "no video of .*two passes all filters: 6 videos, 3 after data.action=squat, 1 after "
            "data.where.split=train, 0 after data.where.view=ego",
        ),
    ],
)
def test_wrong_filters_name_what_exists(folders, overrides, message):
    with pytest.raises(UserError, match=message):
        opened(*overrides)


def test_videos_without_a_view_are_told_how_to_get_one(video_folder):
    with pytest.raises(UserError, match=r"data\.where\.view: no video of .*videos has a view; wri"):
        opened("data.where.view=ego")


def test_a_split_that_the_filters_emptied_is_told_with_the_filters(folders):
    index = opened("data.action=golf_swing")
    with pytest.raises(UserError, match=r"no videos in the split 'test' that pass the filters \(6"):
        selection.videos_of_split(index, "test")
    assert len(selection.videos_of_split(index, "train")) == 3


def test_no_advice_to_write_a_split_that_labels_refuse(folders):
    with pytest.raises(UserError, match=r"^there is no split 'tset', did you mean 'test'\?$"):
        selection.videos_of_split(opened(), "tset")


def test_a_run_has_its_class_set_whichever_is_chosen(folders, monkeypatch):
    for one in LABELS:
        shutil.copytree(folders / one, folders / f"{one}_copy")
        content = {"class_sets": {"gym99": {"all": ["a"]}, "gym288": {"all": ["a", "b"]}}}
        (folders / f"{one}_copy" / "labels.json").write_text(json.dumps(content))
        build_index(folders / f"{one}_copy", progress=False)
    several = "data.folder=[one_copy,two_copy]"
    for folder in ("data.folder=one_copy", several):
        for chosen, own in ((None, None), ("gym288", None), ("gym99", "gym288")):
            overrides = [folder, *([f"data.class_set={own}"] if own else [])]
            index = opened(*overrides, class_set=chosen)
            assert index.class_set == (chosen or own or "gym99")
            assert index.run_class_set == (own or "gym99")


def test_training_warns_of_an_empty_test_split(folders, caplog):
    for action, warned in (("golf_swing", True), ("squat", False)):
        caplog.clear()
        training_loader(load_config("tiny.yaml", [f"data.action={action}"]), torch.device("cpu"))
        assert (NO_TEST in caplog.text) == warned


def test_training_sees_the_filtered_videos_of_all_folders(folders, prepared, capsys, caplog):
    options = ["tiny.yaml", "data.action=golf_swing", "train.run_dir=run", "train.steps=1"]
    assert main([*options, "--dry-run"]) == 0
    assert caplog.text.count(NO_TEST) == 1
    printed = capsys.readouterr().out
    assert "data         3 videos in split 'train'" in printed
    assert "filter       data.action=golf_swing" in printed
    assert f"folder       {prepared / 'one'}: 2 videos, 66.7 % of an epoch" in printed
    assert f"folder       {prepared / 'two'}: 1 video, 33.3 % of an epoch" in printed
    assert main(options) == 0
    trained = json.loads(Path("run/training_videos.json").read_text())["videos"]
    assert sorted(trained) == ["one/a.mp4", "one/b.mp4", "two/a.mp4"]
    cfg = load_config("run/config.yaml")
    assert [*cfg.data.folder] == [str(prepared / "one"), str(prepared / "two")]
    assert main([*options, "--resume"]) == 0
    assert main([*options, "--resume", "data.action=squat"]) == 2
    assert "data.action = golf_swing (now squat)" in capsys.readouterr().err
    assert main([*options, "data.folder=[one,none]", "--overwrite"]) == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_dry_run_names_weights():
    videos = [SimpleNamespace(source=0)] * 3 + [SimpleNamespace(source=1)]
    cfg = plain_config({"data.folder": ["x", "y"], "data.weights": [1, 3]}).data
    assert folder_lines(videos, cfg) == [
        "folder       x: 3 videos, weight 1, 25.0 % of an epoch",
        "folder       y: 1 video, weight 3, 75.0 % of an epoch",
    ]


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_process_of_a_machine_looks_for_changed_files(folders, monkeypatch, local_rank):
    asked = []
    original = selection.load_indexes
    monkeypatch.setattr(
        selection,
        "load_indexes",
        lambda *args, check, **options: asked.append(check) or original(*args, **options),
    )
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    training_loader(load_config("tiny.yaml"), "cpu", dry_run=True)
    assert asked == [local_rank == 0]


def test_a_stale_folder_among_several_is_named(folders):
    (folders / "three").mkdir()
    with pytest.raises(StaleIndex, match="three has no index"):
        opened("data.folder=[one,three]")


# --- the order of an epoch ----------------------------------------------------------------------


def order_of(sources, shards, weights=None, folders=("x", "y"), **options):
    videos = [SimpleNamespace(source=s, shard=k) for s, k in zip(sources, shards, strict=True)]
    cfg = plain_config({"data.folder": [*folders], "data.weights": weights}).data
    return dataset.open_order(videos, cfg, 7, **options)


def test_files_are_shuffled_together_and_weights_mix_the_folders():
    assert order_of([0, 0, 1], [-1, -1, -1]) is None
    assert order_of([0, 0], [-1, -1], weights=[2], folders=["x"]) is None
    order = order_of([0, 0, 1, 1], [-1] * 4, weights=[1, 3])
    assert order.describe() == Mixture([0, 0, 1, 1], [1, 3], 7).describe()
    assert sorted(order.order(0) >= 2) == [False, True, True, True]


def test_shards_are_read_one_after_the_other():
    order = order_of([0, 0, 1, 1], [0, 1, 2, 2], rank=1, world_size=2)
    assert order.share == (1, 2)
    assert order.describe() == ByShard([0, 1, 2, 2], 7, 1, 2).describe()
    assert order_of([0, 0], [0, -1]) is None  # not all are in shards


def test_weights_that_cannot_be_kept_are_refused():
    with pytest.raises(UserError, match=r"data\.weights: the videos of y lie in shards, .*Remove"):
        order_of([0, 1], [-1, 4], weights=[1, 1])
    with pytest.raises(UserError, match=r"data\.weights: y has no video for training"):
        order_of([0, 0], [-1, -1], weights=[1, 1])


def test_the_loader_gets_the_order(folders):
    cfg = load_config("tiny.yaml", ["data.weights=[1,3]"])
    records = selection.videos_of_split(selection.open_index(cfg), "train")
    loader, _ = dataset.open_loader(
        records, cfg.data, OmegaConf.to_object(cfg.augmentation), 5, progress=False
    )
    assert loader.state_dict()["order"] == Mixture([0, 0, 1, 1], [1, 3], 5).describe()


# --- features on disk ---------------------------------------------------------------------------


def test_features_lie_in_the_folder_of_their_video(folders, prepared):
    frozen = ["model.train_from=none", "model.random_frozen=true", "data.cache=features"]
    cfg = load_config("tiny.yaml", frozen)
    records = [*selection.open_index(cfg).videos]
    paths = [Path("one"), Path("two")]
    store = FeatureStore(paths, initial_model(cfg), cfg)
    assert all(store.covers(record) for record in records)
    assert store.fill(records[2:4], (0, 1), progress=False) == []
    made = {file.name.partition(".")[0] for file in Path("one/.fastseq_features").rglob("*.npy")}
    assert made == {"c"}
    # A run on one folder alone finds the same features, augmented ones too.
    alone = FeatureStore(Path("two"), store.encoder, cfg)
    (record, *_) = opened("data.folder=two").videos
    for draw in (0, 1):
        np.testing.assert_array_equal(alone.get(record, draw), store.get(records[3], draw))
    other = SimpleNamespace(id="two/a.mp4", path=str(prepared / "one/a.mp4"), source=1)
    assert not store.covers(other)
