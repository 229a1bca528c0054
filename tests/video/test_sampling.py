"""Chunks that cover a whole video, and frames with their context."""

import numpy as np
import pytest

from fastseq.video import context_frames, sample_clip


def draw(strategy, num_frames, T, seed=0, **options):
    return sample_clip(num_frames, T, np.random.default_rng(seed), strategy=strategy, **options)


@pytest.mark.parametrize("num_frames", [20, 23, 39, 200])
def test_segments_give_one_frame_of_each_chunk(num_frames):
    seen = [set() for _ in range(20)]
    for seed in range(400):
        frames, valid = draw("segment", num_frames, 20, seed)
        assert frames.dtype == np.int64
        assert valid.all()
        for chunk, frame in enumerate(frames):
            seen[chunk].add(int(frame))
    # The chunks cover the video in order and have nearly equal lengths.
    assert [frame for chunk in seen for frame in sorted(chunk)] == list(range(num_frames))
    sizes = {len(chunk) for chunk in seen}
    assert sizes <= {num_frames // 20, -(-num_frames // 20)}


def test_offset_uniform_draws_every_subset_alike():
    counts = np.zeros(7)
    for seed in range(700):
        frames, valid = draw("offset_uniform", 7, 3, seed)
        assert valid.all()
        assert (np.diff(frames) > 0).all()
        counts[frames] += 1
    assert (abs(counts - 300) < 60).all()  # 3 of 7: 300 +- 13


def test_positives_are_a_little_earlier_than_their_anchors():
    gaps = set()
    for seed in range(200):
        frames, valid = draw("anchors", 50, 8, seed, positive_window=3)
        anchors, positives = frames[0::2], frames[1::2]
        assert valid.all()
        assert (np.diff(anchors) > 0).all()
        assert (positives >= 0).all()
        gaps |= set((anchors - positives)[anchors >= 3].tolist())
    assert gaps == {1, 2, 3}


@pytest.mark.parametrize("strategy", ["segment", "offset_uniform", "anchors"])
def test_short_videos_are_taken_whole_and_padded(strategy):
    frames, valid = draw(strategy, 3, 8)
    if strategy == "anchors":
        assert frames[0:6:2].tolist() == [0, 1, 2]
        assert valid.tolist() == [True] * 6 + [False] * 2
    else:
        assert frames.tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
        assert valid.tolist() == [True] * 3 + [False] * 5


def test_sampling_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="T = 7 is odd"):
        draw("anchors", 50, 7)
    with pytest.raises(ValueError, match="sampling must be one of"):
        draw("stride", 50, 8)
    with pytest.raises(ValueError, match="a video of 0"):
        draw("segment", 0, 8)


def test_context_is_past_frames_clamped_at_the_first():
    frames = context_frames(np.array([0, 10, 40]), 3, 15)
    assert frames.tolist() == [[0, 0, 0], [0, 0, 10], [10, 25, 40]]
    assert context_frames(np.array([[7]]), 1, 15).tolist() == [[[7]]]
