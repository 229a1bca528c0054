"""Items of damaged videos: drawn among the sound frames, numbered as in the whole video."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    TwoViews,
    VideoPairs,
    write_video,
)
from fastseq.video.gaps import frames_of, gaps_of, sound_frames
from fastseq.video.sampling import context_frames

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)
FRAMES, GAPS = 30, ((0, 2), (7, 12), (20, 21), (27, 30))
SOUND = [2, 3, 4, 5, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26]


def video(name, path="none.mp4", gaps=GAPS, frames=FRAMES, **more):
    size = {"fps": 25.0, "width": 48, "height": 36}
    return SimpleNamespace(
        id=name, path=str(path), frames=frames, gaps=gaps, action="all", **size, **more
    )


KINDS = {
    **{
        f"views {sampling} {base}": (
            TwoViews,
            {"num_frames": 6, "sampling": sampling, "crop_base": base},
        )
        for sampling in ("random", "even")
        for base in ("clip", "span", "video")
    },
    **{
        f"pairs {sampling}": (
            VideoPairs,
            {"num_frames": 6, "sampling": sampling, "num_context": 3, "context_stride": 4},
        )
        for sampling in ("segment", "offset_uniform", "anchors")
    },
    "padded": (TwoViews, {"num_frames": 40}),
    "tuples": (SegmentTuples, {}),
}


def test_gaps_and_sound_frames_are_the_same_thing():
    assert sound_frames(FRAMES, GAPS).tolist() == SOUND
    assert gaps_of(sorted({*range(FRAMES)} - {*SOUND})) == GAPS
    assert frames_of(video("a")).tolist() == SOUND
    assert frames_of(SimpleNamespace(frames=4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_a_video_without_the_gaps(kind):
    """Place p among the sound frames stands for the p-th of them; nothing else changes."""
    make, options = KINDS[kind]
    with_gaps = make([video("a"), video("b")], augmentation=PLAIN, side=24, **options)
    shorter = [video(name, gaps=(), frames=len(SOUND)) for name in "ab"]
    without = make(shorter, augmentation=PLAIN, side=24, **options)
    del shorter[0].gaps  # a video need not have any such thing
    sound = np.array(SOUND)
    for epoch in range(20):
        one, two = with_gaps.item(1, epoch, 0), without.item(1, epoch, 0)
        np.testing.assert_array_equal(one.steps, sound[two.steps])
        np.testing.assert_array_equal(one.valid, two.valid)
        assert set(one.num_frames.tolist()) == {FRAMES}
        for reading, other in zip(one.readings, two.readings, strict=True):
            for clip, whole in zip(reading.clips, other.clips, strict=True):
                np.testing.assert_array_equal(clip.frames, sound[whole.frames])
                assert clip.draw == whole.draw


def test_context_goes_back_over_a_gap():
    items = VideoPairs(
        [video("a"), video("b")], 6, PLAIN, sampling="segment", num_context=2, context_stride=1
    )
    item = items.item(0, 0, 0)
    (clip,) = item.readings[0].clips
    before = dict(zip(SOUND, [SOUND[0], *SOUND], strict=False))
    assert clip.frames.reshape(6, 2).tolist() == [[before[k], k] for k in item.steps[0].tolist()]
    assert context_frames(np.array([5]), 2, 1).tolist() == [[4, 5]]


def test_a_batch_never_asks_for_a_damaged_frame(tmp_path):
    levels = 8 * np.arange(FRAMES, dtype=np.uint8)[:, None, None, None]
    path = tmp_path / "a.mp4"
    write_video(path, np.broadcast_to(levels, (FRAMES, 36, 48, 3)), 25, crf=5)
    loader = ClipLoader(TwoViews([video("a", path)], 12, PLAIN), 1, engine=PyAVEngine(16))
    for batch in loader.stream(10):
        assert set(batch["steps"].flatten().tolist()) <= {*SOUND}
        level = batch["frames"].float().mean((3, 4, 5))
        assert (level - 8 * batch["steps"]).abs().max() < 4
        torch.testing.assert_close(batch["times"], batch["steps"].double() / 25)


def test_a_video_without_a_sound_frame_is_left_out():
    gone = video("gone", gaps=((0, 12), (10, FRAMES)))
    items = TwoViews([video("a"), gone], 6, PLAIN)
    assert [one.id for one in items.videos] == ["a"]
    assert items.left_out == [("gone", "none of its 30 frames is sound")]
    with pytest.raises(ValueError, match="none of the 1 videos has a sound frame"):
        TwoViews([gone], 6, PLAIN)
    with pytest.raises(ValueError, match="each of the 1 videos is the only one of its action"):
        VideoPairs([video("a"), gone], 6, PLAIN)
    short = video("short", gaps=((5, FRAMES),))
    items = SegmentTuples([short, video("a"), gone], PLAIN)
    assert [one.id for one in items.videos] == ["a"]
    assert items.left_out == [
        ("short", "has 5 sound frames, 3 segments of two frames need 6"),
        ("gone", "none of its 30 frames is sound"),
    ]


def test_a_saved_loader_knows_the_gaps(tmp_path):
    def loader(gaps):
        return ClipLoader(TwoViews([video("a", gaps=gaps)], 6, PLAIN), 1, engine=PyAVEngine(16))

    state = loader(GAPS).state_dict()
    loader(GAPS).load_state_dict(state)
    for other in ((), ((0, 2), (7, 12), (20, 21), (26, 30)), ((1, 3), *GAPS[1:])):
        with pytest.raises(ValueError, match="numbers of frames, gaps, crops or sync differ"):
            loader(other).load_state_dict(state)


def test_a_saved_loader_knows_crops_and_sync():
    def loader(**more):
        items = TwoViews([video("a", **more), video("b", **more)], 6, PLAIN)
        return ClipLoader(items, 1, engine=PyAVEngine(16))

    plain, crop, sync = {}, {"crop": (0, 0, 24, 36)}, {"sync": ("trial", 3)}
    kinds = [plain, crop, {"crop": (1, 0, 24, 36)}, sync, {"sync": ("trial", 4)}, crop | sync]
    for saved in kinds:
        for given in kinds:
            state = loader(**saved).state_dict()
            if given is saved:
                loader(**given).load_state_dict(state)
                continue
            with pytest.raises(ValueError, match="gaps, crops or sync differ"):
                loader(**given).load_state_dict(state)
    assert loader(crop=None, sync=None).state_dict() == loader().state_dict()


def test_a_damaged_video_beyond_the_known_gaps_is_set_aside(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((20, 36, 48, 3), np.uint8), 25)  # 10 frames fewer than announced
    other = tmp_path / "b.mp4"
    write_video(other, np.zeros((FRAMES, 36, 48, 3), np.uint8), 25)
    items = TwoViews([video("a", path), video("b", other)], 19, PLAIN)
    loader = ClipLoader(items, 2, engine=PyAVEngine(16))
    with pytest.warns(RuntimeWarning, match="left out a: frame 26 was requested"):
        (batch,) = loader
    assert batch["ids"] == ["b", "b"]
    assert [*loader.bad] == [str(path)]
