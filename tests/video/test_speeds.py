"""Views of one video at two speeds, as SpeedNet draws them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.video import sample_views


def speeds(num_frames, T, seed=0):
    return sample_views(num_frames, T, np.random.default_rng(seed), strategy="speeds")


@settings(max_examples=300)
@given(st.integers(1, 400), st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_both_views_have_equally_many_frames_in_order(num_frames, T, seed):
    frames, valid = speeds(num_frames, T, seed)
    again, _ = speeds(num_frames, T, seed)
    assert np.array_equal(frames, again)
    assert frames.shape == valid.shape == (2, T)
    assert (frames.dtype, valid.dtype) == (np.int64, bool)
    counts = valid.sum(1)
    # The number of real frames must not reveal the speed.
    assert counts[0] == counts[1] >= 1
    for view in frames:
        real = view[: counts[0]]
        assert valid[:, : counts[0]].all()
        assert (np.diff(real) > 0).all()
        assert real[0] >= 0
        assert real[-1] < num_frames
        assert (view[counts[0] :] == num_frames - 1).all()
    both = frames[:, : counts[0]]
    assert both.max() - both.min() < 3 * T  # one segment


def test_the_second_view_is_about_twice_as_fast():
    gaps = np.array([np.diff(speeds(1000, 64, seed)[0]).mean(1) for seed in range(300)])
    # Frames kept with probability 1 / f are f apart on average: mean 1.1 and 1.95, +- 0.02.
    assert gaps.mean(0) == pytest.approx([1.1, 1.95], abs=0.03)
    assert (gaps[:, 0] < gaps[:, 1]).all()


def test_both_views_show_the_same_part_on_average():
    middle = np.array([speeds(1000, 20, seed)[0].mean(1) for seed in range(2000)])
    # Standard error of the mean difference: 14 / sqrt(2000) = 0.3 frames.
    assert abs((middle[:, 0] - middle[:, 1]).mean()) < 1.5
    assert middle.mean(0) == pytest.approx([500, 500], abs=25)


def test_segments_reach_both_ends():
    frames = np.concatenate([speeds(70, 20, seed)[0] for seed in range(300)])
    assert frames.min() == 0
    assert frames.max() == 69


def test_short_videos_are_padded_alike():
    frames, valid = speeds(10, 20)
    assert valid[0].tolist() == valid[1].tolist()
    assert 1 <= valid[0].sum() <= 10
    assert (frames[~valid] == 9).all()
