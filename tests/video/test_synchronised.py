"""SynchronisedViews: frames with equal steps show the same instant in two cameras."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from fastseq.video import Augmentation, ClipLoader, PyAVEngine, SynchronisedViews, write_video
from fastseq.video.gaps import frames_of

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)


def camera(name, frames=90, fps=30.0, group="trial", offset=0, **more):
    sync = None if group is None else (group, offset)
    size = {"width": 48, "height": 36, "action": "walk"}
    return SimpleNamespace(
        id=name, path=f"{name}.mp4", frames=frames, fps=fps, sync=sync, **size, **more
    )


def shown(item):
    """(instants in seconds of the frames of both clips, instants according to `steps`), (2, T)
    each.
    """
    videos = {"a.mp4": A, "b.mp4": B, "c.mp4": C}
    seconds = []
    for reading in item.readings:
        video, (clip,) = videos[reading.path], reading.clips
        seconds.append((clip.frames + video.sync[1]) / video.fps)
    return np.stack(seconds), item.steps / item.fps[:, None]


A = camera("a", 90, 30.0, offset=-4)
B = camera("b", 120, 30.0, offset=13, gaps=((40, 47),))
C = camera("c", 70, 25.0, offset=3)  # another rate
KINDS = {
    "views": {"sampling": "random"},
    "even": {"sampling": "even", "crop_base": "span"},
    "segment": {"sampling": "segment"},
    "anchors": {"sampling": "anchors"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_equal_steps_show_the_same_instant(kind):
    items = SynchronisedViews([A, B, C], 16, PLAIN, **KINDS[kind])
    assert len(items) == 3
    assert not items.left_out
    seen = set()
    for epoch in range(40):
        for index in range(3):
            item = items.item(1, epoch, index)
            again = items.item(1, epoch, index)
            assert item.id == again.id
            assert np.array_equal(item.steps, again.steps)
            seen.add(item.id)
            seconds, said = shown(item)
            # The first video's frames are exact; the other's are the nearest, at most half a frame
            # away.
            half = 0.5 / (25 if item.id.endswith("c") else 30)
            assert np.abs(seconds[0] - said[0]).max() < 1e-9
            assert np.abs(seconds[1] - said[1]).max() < ("c" in item.id) * half + 1e-9
            assert item.valid.all()
            assert item.fps[0] == item.fps[1] == {"a": 30.0, "b": 30.0, "c": 25.0}[item.id[0]]
            assert item.num_frames[0] == item.num_frames[1] >= np.ptp(item.steps) + 1
            for reading, video in zip(item.readings, item.id.split(" with "), strict=True):
                sound = frames_of({"a": A, "b": B, "c": C}[video])
                assert np.isin(reading.clips[0].frames, sound).all()
    assert seen == {f"{x} with {y}" for x in "abc" for y in "abc" if x != y}


def test_the_common_time_is_drawn_whole_and_no_more():
    """Common instants of a and b: frames 17 to 89 and 0 to 72, without those of b's gap."""
    items = SynchronisedViews([A, B], 8, PLAIN, sampling="segment")
    drawn = np.stack([items.item(0, epoch, 0).steps for epoch in range(300)])
    instants = {*range(13, 86)} - {*range(53, 60)}
    assert {*drawn[:, 0].flatten()} == {*drawn[:, 1].flatten()} == instants
    assert items.item(0, 0, 0).num_frames.tolist() == [73, 73]
    views = SynchronisedViews([A, B], 8, PLAIN, sampling="even", crop_base="clip")
    item = views.item(0, 0, 0)
    assert not np.array_equal(*item.steps)  # each clip has its own window


def test_a_short_common_time_is_padded():
    late = camera("b", offset=84)  # six instants with a, whose last is 89
    items = SynchronisedViews([camera("a"), late], 10, PLAIN)
    item = items.item(0, 0, 0)
    assert item.valid.tolist() == [[True] * 6 + [False] * 4] * 2
    assert item.steps.tolist() == [[*range(84, 90)] + [89] * 4] * 2
    first, second = (reading.clips[0].frames.tolist() for reading in item.readings)
    assert first == [*range(84, 90)] + [89] * 4
    assert second == [*range(6)] + [5] * 4


def test_context_comes_from_the_same_video():
    items = SynchronisedViews([A, B], 4, PLAIN, sampling="segment", num_context=2, context_stride=5)
    for epoch in range(20):
        item = items.item(0, epoch, 0)
        for reading, video, steps in zip(item.readings, (A, B), item.steps, strict=True):
            sound = frames_of(video)
            before, itself = reading.clips[0].frames.reshape(4, 2).T
            assert np.array_equal(itself, steps - video.sync[1])
            places = np.searchsorted(sound, itself)
            assert np.array_equal(before, sound[np.maximum(places - 5, 0)])


def test_videos_without_a_partner_are_named():
    videos = [
        camera("a"),
        camera("b", offset=10),
        camera("alone", group="other"),
        camera("late", offset=99),  # overlaps b alone, in frames 89 and before: one instant
        camera("plain", group=None),
        camera("copy", gaps=((0, 90),)),
    ]
    items = SynchronisedViews(videos, 8, PLAIN)
    assert [video.id for video in items.videos] == ["a", "b"]
    reasons = dict(items.left_out)
    assert reasons.keys() == {"alone", "late", "plain", "copy"}
    assert "the only video of the group 'other'" in reasons["alone"]
    assert "fewer than 2 instants in common" in reasons["late"]
    assert "has no sync" in reasons["plain"]
    assert "none of its 90 frames is sound" in reasons["copy"]
    assert items.item(0, 0, 0, bad={"b.mp4"}) is None
    with pytest.raises(ValueError, match=r"no synchronised videos .* 2 \(a is the only .*\"sync\""):
        SynchronisedViews([camera("a"), camera("b", group="other")], 8, PLAIN)


def test_two_instants_are_enough():
    items = SynchronisedViews([camera("a"), camera("b", offset=88)], 4, PLAIN)
    assert items.item(0, 0, 1).steps[0].tolist() == [88, 89, 89, 89]


def test_pixels_of_two_cameras_agree(tmp_path):
    """At instant k all pixels have grey level 5 k, so the level shows the instant in any crop."""
    videos = []
    for name, first, count in (("a", 0, 40), ("b", 7, 33)):
        levels = 5 * np.arange(first, first + count, dtype=np.uint8)
        path = tmp_path / f"{name}.mp4"
        write_video(path, [np.full((36, 48, 3), level) for level in levels], 30, crf=5)
        videos.append(camera(name, count, offset=first))
        videos[-1].path = str(path)
    items = SynchronisedViews(videos, 12, PLAIN)
    for batch in ClipLoader(items, 2, engine=PyAVEngine(16), seed=1).stream(4):
        assert batch["frames"].shape == (2, 2, 12, 3, 16, 16)
        level = batch["frames"].float().mean((3, 4, 5))
        assert (level - 5 * batch["steps"]).abs().max() < 2.4
        assert torch.equal(batch["times"], batch["steps"].double() / 30)
