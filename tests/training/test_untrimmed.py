"""Generated untrimmed videos: segments, rests between them, labels that `prepare` accepts."""

import json

import numpy as np
import pytest

from training.demo.scene import ACTIONS
from training.demo.untrimmed import SHORTEST_REST, SHOWN, plan_untrimmed, render_untrimmed


def test_plans_have_segments_with_rests_around_them():
    counts = set()
    for number in range(40):
        plan = plan_untrimmed(3, "train", number)
        assert plan == plan_untrimmed(3, "train", number)
        assert plan.id == f"train_{number:03d}.mp4"
        edges = [0, *(x for one in plan.segments for x in (one.start, one.stop)), plan.frames]
        assert (np.diff(edges)[::2] >= SHORTEST_REST).all()
        assert (np.diff(edges)[1::2] >= 0.07 * plan.frames).all()
        place = plan.phases + plan.fractions
        assert (plan.fractions >= 0).all()
        assert (plan.fractions < 1).all()
        assert place.max() < len(ACTIONS[plan.action].phases)
        for one in plan.segments:
            action, first, last = SHOWN[one.name]
            assert action == plan.action
            inside = place[one.start : one.stop]
            assert inside[0] == first
            assert (np.diff(inside) > 0).all()
            assert inside[-1] > last + 0.5
            place[one.start : one.stop] = np.nan
        moves = np.abs(np.diff(place))
        assert np.count_nonzero(moves > 1e-5) <= len(plan.segments) - 1  # one change of pose
        counts.add(len(plan.segments))
    assert counts == {1, 2, 3}


def test_segments_are_of_the_four_classes_of_the_documented_figures():
    plans = [plan_untrimmed(0, "train", number) for number in range(60)]
    found = {one.name for plan in plans for one in plan.segments}
    assert found == {"place-reach", "place-carry", "swing-backswing", "swing-downswing"}


def test_labels_and_reuse(tmp_path):
    from training.data.index import build_index

    options = {"train": 2, "test": 1, "side": 32, "progress": False}
    assert not render_untrimmed(tmp_path / "videos", **options).reused
    assert render_untrimmed(tmp_path / "videos", **options).reused
    labels = json.loads((tmp_path / "videos/labels.json").read_text())
    index = build_index(tmp_path / "videos", progress=False)
    assert index.classes == {"all": [*SHOWN]}
    for record in index.videos:
        expected = np.full(record.frames, -1)
        for start, stop, name in labels["videos"][record.id]["segments"]:
            expected[start:stop] = [*SHOWN].index(name)
        np.testing.assert_array_equal(record.phases, expected)
        assert record.split == record.id.split("_")[0]
    with pytest.raises(ValueError, match="not both 0"):
        render_untrimmed(tmp_path / "other", train=0, test=0)
