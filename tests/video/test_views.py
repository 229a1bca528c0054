import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.video import sample_views

options = {
    "num_frames": st.integers(1, 400),
    "T": st.integers(1, 120),
    "seed": st.integers(0, 2**32 - 1),
    "strategy": st.sampled_from(["random", "even"]),
    "beta": st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7, 1.0]),
}


@settings(max_examples=300)
@given(
    **options,
    crop_base=st.sampled_from(["clip", "video", "span"]),
    alpha=st.sampled_from([1.0, 1.5, 3.0]),
)
def test_indices_are_sorted_unique_and_in_range(
    num_frames, T, seed, strategy, beta, crop_base, alpha
):
    keywords = {"strategy": strategy, "beta": beta, "crop_base": crop_base, "alpha": alpha}
    frames, valid = sample_views(num_frames, T, np.random.default_rng(seed), **keywords)
    again, _ = sample_views(num_frames, T, np.random.default_rng(seed), **keywords)
    assert np.array_equal(frames, again)
    assert frames.shape == valid.shape == (2, T)
    assert frames.dtype == np.int64
    assert valid.dtype == bool
    for view, real in zip(frames, valid, strict=True):
        count = int(real.sum())
        assert real[:count].all()
        assert np.all(np.diff(view[:count]) > 0)
        assert view.min() >= 0
        assert view.max() < num_frames
        assert np.all(view[count:] == num_frames - 1)
        if crop_base != "video":
            assert count == min(num_frames, T)  # T different frames whenever there are that many


@settings(max_examples=300)
@given(**options, crop_base=st.sampled_from(["clip", "span"]))
def test_crops_overlap_by_beta(num_frames, T, seed, strategy, beta, crop_base):
    """With even sampling a view covers its crop from end to end, so it shows the crop."""
    frames, valid = sample_views(
        num_frames, T, np.random.default_rng(seed), strategy="even", beta=beta, crop_base=crop_base
    )
    if T == 1 or num_frames == 1:
        return
    (a, b), (c, d) = ((v[m].min(), v[m].max()) for v, m in zip(frames, valid, strict=True))
    shared = min(b, d) - max(a, c) + 1
    assert beta == 0 or shared >= beta * min(b - a + 1, d - c + 1) - 1e-9


def test_clip_crops_reach_every_length_and_place():
    generator = np.random.default_rng(0)
    crops = []
    for _ in range(4000):
        frames, _ = sample_views(200, 80, generator, strategy="even")
        crops.append([(v[0], v[-1] - v[0] + 1) for v in frames])
    starts, lengths = np.array(crops).transpose(2, 0, 1)
    assert lengths.min() == 81  # ceil(r T), r > 1 almost surely
    assert lengths.max() == 120
    assert abs(lengths.mean() - 100.5) < 0.5  # mean of ceil(80 U(1, 1.5))
    assert starts.min() == 0
    assert starts.max() > 112
    ends = starts + lengths
    shared = ends.min(1) - starts.max(1)
    assert shared.min() == np.ceil(0.2 * 81)  # the bound is met, and reached
    assert shared.max() > 110


def test_span_lengths_follow_the_fraction():
    generator = np.random.default_rng(0)
    lengths = []
    for _ in range(3000):
        frames, _ = sample_views(
            1000, 48, generator, strategy="even", crop_base="span", span=(0.3, 0.9), beta=0.2
        )
        lengths.extend(frames[:, -1] - frames[:, 0] + 1)
    assert min(lengths) >= 300
    assert max(lengths) <= 900
    assert abs(np.mean(lengths) - 600) < 10
    short, valid = sample_views(60, 48, generator, crop_base="span", span=(0.3, 0.3))
    assert valid.all()  # 18 frames could not hold 48, so the span grows to 48
    assert np.ptp(short, axis=1).max() == 47


def test_beta_zero_draws_the_crops_independently():
    generator = np.random.default_rng(0)
    apart = 0
    for _ in range(500):
        frames, _ = sample_views(1000, 50, generator, beta=0.0)
        apart += frames[0].max() < frames[1].min() or frames[1].max() < frames[0].min()
    assert apart > 350


def test_video_base_reproduces_the_released_settings():
    """Without any crop, 19 % of the slots are padding on average, and 40 % of them with 60 of
    80.
    """
    generator = np.random.default_rng(0)
    padding, first = [], []
    for _ in range(4000):
        frames, valid = sample_views(300, 240, generator, crop_base="video", beta=0.2)
        padding.extend(1 - valid.mean(1))
        first.append(frames[:, 0])
    assert np.mean(padding) == pytest.approx(1 - 2 * np.log(1.5), abs=0.005)  # E[1 - 1/r] = .189
    assert 0.33 < np.max(padding) < 0.47
    assert np.mean(np.array(first) == 0) > 0.5  # the crop always starts at frame 0
    valid = [sample_views(60, 80, generator, crop_base="video")[1].mean() for _ in range(2000)]
    assert np.mean(valid) == pytest.approx(0.75 * 2 * np.log(1.5), abs=0.01)  # .608


def test_random_sampling_is_uniform_over_the_crop():
    generator = np.random.default_rng(0)
    counts = np.zeros(40)
    for _ in range(4000):
        frames, _ = sample_views(40, 10, generator, alpha=100.0)  # nearly always the whole video
        counts += np.bincount(frames.ravel(), minlength=40)
    share = counts / counts.mean()
    assert share.min() > 0.9
    assert share.max() < 1.1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_frames": 0}, "at least 1, got 0"),
        ({"strategy": "evenly"}, "'evenly'"),
        ({"crop_base": "frame"}, "clip, video, span"),
        ({"alpha": 0.9}, "alpha must be at least 1"),
        ({"beta": 1.1}, r"\[0, 1\]"),
        ({"span": (0.5, 0.4)}, "low <= high"),
    ],
)
def test_wrong_options(keywords, message):
    with pytest.raises(ValueError, match=message):
        sample_views(
            **{"num_frames": 50, "T": 10, "generator": np.random.default_rng(0), **keywords}
        )
