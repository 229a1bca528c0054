"""The output folder of each reader is one that `prepare` accepts, with all its labels."""

import json

import more_trees
import pytest

from training.data.index import build_index
from training.labels import main

# Data set -> videos of each split, number of labelled frames; each video has 12 frames.
EXPECTED = {
    "ikea_asm": ({"train": 1, "test": 1}, 2 * 7),
    "ae2": ({"train": 4, "val": 4, "test": 4}, 12 * 12),
    "ucf101": ({"train": 2, "test": 2}, 0),
    "hmdb51": ({"train": 2, "test": 2}, 0),
    "kinetics": ({"train": 2, "val": 1, "test": 1}, 0),
    "ssv2": ({"train": 2, "val": 1, "test": 1}, 0),
    # 0.05 to 0.3 s are frames 2 to 7; 0 to 0.25 s frames 0 to 6, 0.3 to 0.48 s frames 8 to 11.
    "activitynet": ({"train": 1, "val": 1, "test": 1}, 6 + 7 + 4),
    "egoprocel": ({"train": 5}, 5 * 10),
}


@pytest.mark.parametrize("name", more_trees.BUILDERS)
def test_prepare_accepts_it(name, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    build, below = more_trees.BUILDERS[name]
    build(source)
    missing = name == "kinetics"
    assert main([name, str(source / below), "--out", str(out)]) == (3 if missing else 0)
    labels = json.loads((out / "labels.json").read_text())
    index = build_index(out)
    assert not index.bad
    assert {video.id for video in index.videos} == labels["videos"].keys()
    assert {video.frames for video in index.videos} == {12}
    splits = [video.split for video in index.videos]
    labelled = sum(int((v.phases >= 0).sum()) for v in index.videos if v.phases is not None)
    assert ({split: splits.count(split) for split in splits}, labelled) == EXPECTED[name]
