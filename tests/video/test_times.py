"""Presentation times: of files, of items and of batches."""

import pickle
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import av
from counter_video import encode, remux
from test_damage import damage

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    SynchronisedViews,
    TwoViews,
    VideoPairs,
    probe,
    read_frames,
)
from fastseq.video.timeline import Timeline

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)
GAPS_MS = np.random.default_rng(0).integers(8, 120, 39)
STAMPS = np.concatenate([[0], np.cumsum(GAPS_MS)])  # ms, 40 frames
WITHOUT_B = {"codec": "mpeg4"}


def write(path, stamps=STAMPS, **options):
    return encode(path, len(stamps), stamps=[int(stamp) for stamp in stamps], **options)


def assert_times(info, stamps):
    assert info.times.dtype == np.float64
    np.testing.assert_allclose(info.times, (stamps - stamps[0]) / 1000, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mov", WITHOUT_B),
        ("a.avi", WITHOUT_B),
        ("a.ts", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("sound.mp4", {"audio_first": True}),
    ],
)
def test_times_of_a_variable_rate_are_those_that_were_written(tmp_path, name, options):
    info = probe(write(tmp_path / name, **options))
    assert info.frames == len(STAMPS)
    assert_times(info, STAMPS)
    if info.timeline is not None:
        assert info.times[-1] == pytest.approx((info.frames - 1) / info.fps, abs=1e-9)
    assert np.array_equal(pickle.loads(pickle.dumps(info)).times, info.times)
    assert np.array_equal(replace(info, sync=("trial", 0)).times, info.times)


def test_times_begin_with_the_first_frame_that_is_shown(tmp_path):
    """mp4 whose first frame is shown late, and one whose edit list hides 5 frames."""
    assert_times(probe(write(tmp_path / "late.mp4", STAMPS + 3000)), STAMPS)
    source = encode(tmp_path / "a.mp4", 30)
    hidden = probe(remux(source, tmp_path / "hidden.mp4", shift=5))
    assert hidden.frames == 25
    np.testing.assert_allclose(hidden.times, np.arange(25) / 25, rtol=0, atol=1e-9)


def test_times_are_those_of_the_frames_in_any_order_of_packets(tmp_path):
    """With B-frames, time k belongs to the k-th shown frame, not to the k-th packet."""
    path = write(tmp_path / "a.mp4", options={"bf": "3"})
    info = probe(path)
    assert (info.timeline.order != np.arange(40)).any()
    with av.open(str(path)) as container:
        shown = {
            frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
        }
    for k in (0, 1, 17, 39):
        nearest = min(shown, key=lambda time: abs(time - info.times[k]))
        assert nearest == pytest.approx(info.times[k], abs=1e-6)
        expected = torch.from_numpy(shown[nearest]).float()
        assert (read_frames(path, [k], info=info)[0].float() - expected).abs().mean() < 3


def test_without_usable_time_stamps_times_are_even(tmp_path):
    """Raw streams have none, AVI has none for H.264 with B-frames: those of `fps`."""
    for name in ("a.h264", "a.avi"):
        info = probe(encode(tmp_path / name, 20))
        assert info.timeline is None
        np.testing.assert_allclose(info.times, np.arange(20) / 25, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_single_frame_is_shown_at_0(tmp_path, name):
    info = probe(encode(tmp_path / name, 1))
    assert (info.frames, info.times.tolist()) == (1, [0.0])


def test_damaged_frames_keep_their_times(tmp_path):
    whole = write(tmp_path / "a.mp4", options={"bf": "0", "g": "12"})
    info = probe(damage(whole, 30, "length"), decode=True)
    assert info.gaps
    assert info.frames == len(info.times)
    assert_times(info, STAMPS[: info.frames])


def vfr(tmp_path):
    """Two files of one action with different rates, and the same file with gaps."""
    one = probe(write(tmp_path / "a.mp4"))
    two = probe(write(tmp_path / "b.mp4", 3 * STAMPS + 7))
    return [one, two, replace(one, gaps=((3, 9), (20, 22)))]


MAKE = {
    "views": lambda videos, **more: TwoViews(videos, 12, PLAIN, **more),
    "padded": lambda videos, **more: TwoViews(videos, 50, PLAIN, **more),
    "pairs": lambda videos, **more: VideoPairs(videos, 8, PLAIN, sampling="segment", **more),
    "tuples": lambda videos, **more: SegmentTuples(videos, PLAIN, **more),
}


@pytest.mark.parametrize("kind", MAKE)
def test_times_of_items_are_those_of_their_frames(tmp_path, kind):
    videos = vfr(tmp_path)
    items = MAKE[kind](videos)
    times = {
        path: np.asarray(stamps) / 1000
        for path, stamps in ((videos[0].path, STAMPS), (videos[1].path, 3 * STAMPS))
    }
    for index in range(3):
        item = items.item(0, 0, index)
        assert item.times.shape == item.steps.shape
        paths = [r.path for r in item.readings] * (len(item.steps) // len(item.readings))
        for path, steps, found in zip(paths, item.steps, item.times, strict=True):
            np.testing.assert_allclose(found, times[path][steps], rtol=0, atol=1e-9)
        even = MAKE[kind]([constant(video) for video in videos]).item(0, 0, index)
        assert np.array_equal(even.steps, item.steps)  # the draws are those of a constant rate
        assert np.array_equal(even.times, even.steps / even.fps[:, None])
        for one, two in zip(item.readings, even.readings, strict=True):
            for clip, other in zip(one.clips, two.clips, strict=True):
                assert np.array_equal(clip.frames, other.frames)


def constant(video):
    names = ("id", "path", "frames", "fps", "width", "height", "action", "gaps")
    return SimpleNamespace(times=None, **{name: getattr(video, name) for name in names})


def test_a_batch_has_true_times_also_with_context(tmp_path):
    videos = vfr(tmp_path)[:2]
    items = MAKE["views"](videos, num_context=2, context_stride=3)
    (batch,) = ClipLoader(items, 2, engine=PyAVEngine(16))
    assert batch["times"].dtype == torch.float64
    assert batch["times"].shape == batch["steps"].shape == (2, 2, 12)
    for name, steps, times in zip(batch["ids"], batch["steps"], batch["times"], strict=True):
        factor = {videos[0].id: 1, videos[1].id: 3}[name]
        expected = torch.from_numpy(factor * STAMPS / 1000)[steps]
        torch.testing.assert_close(times, expected, rtol=0, atol=1e-9)


def test_synchronised_views_keep_their_instants(tmp_path):
    one, two, _ = vfr(tmp_path)
    videos = [replace(one, sync=("trial", 0)), replace(two, sync=("trial", 4))]
    item = SynchronisedViews(videos, 6, PLAIN).item(0, 0, 0)
    assert np.array_equal(item.times, item.steps / item.fps[:, None])


@pytest.mark.parametrize("base", [Fraction(1, 90_000), Fraction(1001, 30_000)])
def test_times_lose_no_digit(base):
    """A day after an origin that is no zero."""
    pts = 123_456_789 + np.array([0, 1, 3003, 24 * 3600 * 90_000 + 1])
    timeline = Timeline(pts, pts[:1], np.arange(4, dtype=np.int32), base)
    assert timeline.times().tolist() == [float(int(stamp - pts[0]) * base) for stamp in pts]
    assert timeline.until(2).times().tolist() == [0.0, float(base)]
