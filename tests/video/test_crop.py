"""A video's crop: nothing outside the box is read, whatever reads it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from counter_video import set_rotation

from fastseq.video import (
    Augmentation,
    ClipLoader,
    PyAVEngine,
    SegmentTuples,
    TwoViews,
    VideoError,
    eval_draw,
    open_engine,
    probe,
    read_frames,
    write_video,
)
from fastseq.video.decode import scaled_area
from fastseq.video.engines.choose import dali_version
from fastseq.video.readings import Clip, area_of, box_of, reading_of
from training.data.cache import FrameCache

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)
WIDTH, HEIGHT = 160, 96
BOXES = {"wide": (40, 32, 64, 40), "tall": (64, 8, 32, 80), "corner": (112, 48, 48, 48)}
INSIDE, OUTSIDE = 200, 40  # grey, as colours are coded at half the size and mix across an edge


MARGIN = 4  # pixels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(name, margin) -> a video, bright in the box and `margin` around it, dark elsewhere."""
    folder = tmp_path_factory.mktemp("boxes")
    made = {}
    for name, (left, top, width, height) in BOXES.items():
        for margin in (0, MARGIN):
            frame = np.full((HEIGHT, WIDTH, 3), OUTSIDE, np.uint8)
            rows = slice(top - margin, top + height + margin)
            frame[rows, left - margin : left + width + margin] = INSIDE
            made[name, margin] = path = str(folder / f"{name} {margin}.mp4")
            write_video(path, [frame] * 10, 25, crf=1)
    return made


def video(path, crop=None, **of_the_box):
    info = probe(path) if Path(path).is_file() else None
    known = {} if info is None else {**vars(info), "id": path, "action": "all"}
    return SimpleNamespace(**{**known, "path": path, "crop": crop, **of_the_box})


def cropped(files, margin):
    return [video(files[name, margin], box) for name, box in BOXES.items()]


def full_size_engines(records):
    yield PyAVEngine(16)
    if dali_version() == "2.1.0":
        yield open_engine("dali-cpu", records, 16)[0]


def scaling_engines(records, side):
    """Their pixels at a box's edge are mixed with those beside it, as in any scaled picture."""
    yield PyAVEngine(16, scale_first=True)
    yield PyAVEngine(16, cache=FrameCache(records, side, progress=False))


def farthest(pixels):
    """Largest distance of a pixel from the grey inside."""
    return int((pixels.int() - INSIDE).abs().amax())


@pytest.mark.parametrize("side", [24, 120])  # boxes are scaled down and up
@pytest.mark.parametrize("kind", ["views", "tuples"])
def test_no_pixel_of_a_clip_is_outside_the_box(files, side, kind):
    spec = replace(PLAIN, scale=(0.2, 1.0), per_clip=kind == "views")
    for margin in (0, MARGIN):
        records = cropped(files, margin)
        if kind == "views":
            items = TwoViews(records, 4, spec, side=side)
        else:
            items = SegmentTuples(records, spec, side=side)
        made = scaling_engines(records, side) if margin else full_size_engines(records)
        for engine in made:
            for batch in ClipLoader(items, 3, engine=engine, seed=2).stream(6):
                assert farthest(batch["frames"]) < 12, engine.name
            engine.close()


@pytest.mark.parametrize("name", BOXES)
def test_crops_reach_the_whole_box(files, name):
    """Not the middle of it alone: the largest draws touch each edge of the box."""
    left, top, width, height = BOXES[name]
    spec = replace(PLAIN, scale=(0.3, 1.0), ratio=(0.25, 4.0))
    items = TwoViews([video(files[name, 0], BOXES[name])], 4, spec, side=120)
    boxes = []
    for epoch in range(300):
        (reading,) = items.item(0, epoch, 0).readings
        boxes += [box_of(clip, reading) for clip in reading.clips]
    tops, lefts, heights, widths = np.array(boxes).T
    reached = [tops.min(), lefts.min(), (tops + heights).max(), (lefts + widths).max()]
    assert np.abs(np.array(reached) - [top, left, top + height, left + width]).max() <= 1


def test_a_crop_of_the_whole_frame_is_none(files):
    made = []
    for crop in (None, (0, 0, WIDTH, HEIGHT)):
        records = [video(path, crop) for path in files.values()]
        items = TwoViews(records, 4, Augmentation(size=16), side=24)
        for engine in (*full_size_engines(records), *scaling_engines(records, 24)):
            made.append(next(iter(ClipLoader(items, 3, engine=engine, seed=1)))["frames"])
            engine.close()
    half = len(made) // 2
    for one, two in zip(made[:half], made[half:], strict=True):
        assert torch.equal(one, two)


def test_what_is_kept_in_memory_gives_the_same_clips(files):
    records = cropped(files, 0)
    items = TwoViews(records, 4, Augmentation(size=16), side=24)
    cache = FrameCache(records, 24, progress=False)
    shapes = {path: frames.shape[1:3] for path, frames in cache.items()}
    areas = [area_of(record, 24) for record in records]
    assert [*shapes.values()] == [(area.height, area.width) for area in areas]
    one, two = (
        next(iter(ClipLoader(items, 3, engine=engine, seed=1)))["frames"]
        for engine in (PyAVEngine(16, cache=cache), PyAVEngine(16, scale_first=True))
    )
    assert torch.equal(one, two)


def test_the_crop_gives_what_a_video_of_the_box_alone_gives(tmp_path):
    """The same draw in the same picture, but for the rounding to whole pixels."""
    rng = np.random.default_rng(0)
    left, top, width, height = BOXES["wide"]
    smooth = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 12)))
    picture = torch.nn.functional.interpolate(smooth, (HEIGHT, WIDTH), mode="bicubic")
    picture = picture[0].permute(1, 2, 0).clip(0, 255).byte().numpy()
    box = picture[top : top + height, left : left + width]
    write_video(tmp_path / "whole.mp4", [picture] * 4, 25, crf=1)
    write_video(tmp_path / "box.mp4", [box] * 4, 25, crf=1)
    made = []
    for record in (
        video(str(tmp_path / "whole.mp4"), BOXES["wide"]),
        video(str(tmp_path / "box.mp4")),
    ):
        area = area_of(record, 40)
        clip = Clip(np.arange(4), eval_draw(area.height, area.width))
        made.append(PyAVEngine(32).read([reading_of(record, 40, [clip])]).float())
    assert (made[0] - made[1]).abs().mean() < 3
    shifted = made[0].roll(6, -1)
    assert (shifted - made[1]).abs().mean() > 10  # so that a shift would show


sizes = st.integers(2, 2000)


@settings(max_examples=400, deadline=None)
@given(
    width=sizes, height=sizes, side=st.integers(16, 300), place=st.tuples(*[st.floats(0, 1)] * 4)
)
def test_areas_lie_in_the_box(width, height, side, place):
    wide = max(1, round(place[2] * width))
    high = max(1, round(place[3] * height))
    left, top = round(place[0] * (width - wide)), round(place[1] * (height - high))
    record = video("none.mp4", (left, top, wide, high), width=width, height=height)
    area = area_of(record, side)
    draw = replace(eval_draw(area.height, area.width), top=0, left=0)
    draw = replace(draw, height=area.height, width=area.width)
    reading = reading_of(record, side, [Clip(np.arange(1), draw)])
    y, x, rows, columns = box_of(reading.clips[0], reading)
    assert rows >= 1
    assert columns >= 1
    if min(wide, high) > 1:  # a box of one pixel is nobody's
        scale = min(wide, high) / side  # pixels of the frame for one of the area
        assert left <= x
        assert top <= y
        assert x + columns <= left + wide
        assert y + rows <= top + high
        assert columns >= wide - 2 * scale - 1
        assert rows >= high - 2 * scale - 1
        assert abs(min(area.height, area.width) - side) <= max(1, 0.02 * side) + 1


@pytest.mark.parametrize("short_side", [None, 20, 100])
def test_read_frames_gives_the_box_alone(files, short_side):
    for name, box in BOXES.items():
        left, top, width, height = box
        path = files[name, MARGIN]
        frames = read_frames(path, [3, 1], short_side=short_side, crop=box)
        if short_side is None:
            whole = read_frames(path, [3, 1])
            assert torch.equal(frames, whole[:, top : top + height, left : left + width])
        else:
            area = scaled_area(HEIGHT, WIDTH, short_side, box)
            assert frames.shape == (2, area.height, area.width, 3)
            assert abs(min(frames.shape[1:3]) - short_side) <= 1
        assert farthest(frames) < 12
        assert len(read_frames(path, short_side=short_side, crop=box)) == 10


def test_the_box_is_one_of_the_upright_frame(tmp_path):
    left, top, width, height = box = (8, 40, 40, 32)  # the frame is 96 wide and 160 high
    upright = np.full((WIDTH, HEIGHT, 3), OUTSIDE, np.uint8)
    rows = slice(top - MARGIN, top + height + MARGIN)
    upright[rows, left - MARGIN : left + width + MARGIN] = INSIDE
    path = tmp_path / "turned.mp4"
    write_video(path, [np.rot90(upright, 1).copy()] * 4, 25, crf=1)
    set_rotation(path, 90)
    record = video(str(path), box)
    assert (record.width, record.height) == (HEIGHT, WIDTH)
    for short_side in (None, 24):
        assert farthest(read_frames(path, [0], short_side=short_side, crop=box)) < 12
    items = TwoViews([record], 3, PLAIN, side=24)
    for engine in (*full_size_engines([record]), *scaling_engines([record], 24)):
        frames = next(iter(ClipLoader(items, 1, engine=engine)))["frames"]
        assert farthest(frames) < 12
        engine.close()


def test_wrong_crops_are_named(files):
    path = files["wide", 0]
    with pytest.raises(VideoError, match=r"crop \(100, 0, 61, 10\).* picture of 160 x 96 pixels"):
        read_frames(path, [0], crop=(100, 0, 61, 10))
    for crop in ((0, 0, 10), (0, 0, 10.5, 10), (-1, 0, 10, 10), (0, 0, 0, 10), 7):
        with pytest.raises(ValueError, match=r"crop must be .left, top, width, height"):
            read_frames(path, [0], crop=crop)
    with pytest.raises(ValueError, match="pass crop with short_side, not with size"):
        read_frames(path, [0], size=10, crop=(0, 0, 10, 10))
