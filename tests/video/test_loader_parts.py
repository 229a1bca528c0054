"""Loaders that share every clip: their parts together are the whole clips."""

import pickle
import threading

import pytest
import torch

pytest.importorskip("av")

from grey import FULL, LENGTHS, loader, pairs, same, views

from fastseq.video import (
    Augmentation,
    PyAVEngine,
    SegmentClips,
    SegmentTuples,
    TooManyBadVideos,
    VideoError,
)

ALONG_T = ("frames", "steps", "times", "valid")
NO_CONTRAST = Augmentation(size=16, jitter=0.0)


def parts_of(items, parts, **options):
    return [loader(items, part=(part, parts), **options) for part in range(parts)]


def joined(batches):
    """The batch of whole clips that loaders returned in parts."""
    whole = {key: torch.cat([batch[key] for batch in batches], 2) for key in ALONG_T}
    whole["lengths"] = sum(batch["lengths"] for batch in batches)
    for key in ("num_frames", "ids", "actions"):
        whole[key] = batches[0][key]
    return whole


@pytest.mark.parametrize(
    ("items", "parts", "options"),
    [
        (views, 3, {"crop_base": "video"}),  # with padding; a part may have nothing else
        (views, 2, {"num_context": 3, "context_stride": 4, "sampling": "segment"}),
        (pairs, 5, {}),
    ],
)
def test_parts_together_are_the_whole_clips_bit_for_bit(videos, items, parts, options):
    made = items(videos, NO_CONTRAST, **options)
    whole = [*loader(made, seed=3).stream(4)]
    several = [[*one.stream(4)] for one in parts_of(made, parts, seed=3)]
    for one, *batches in zip(whole, *several, strict=True):
        assert all(batch["ids"] == one["ids"] for batch in batches)
        assert batches[0]["steps"].shape[2] == one["steps"].shape[2] // parts
        assert same(joined(batches), one)
        assert all(torch.equal(batch["num_frames"], one["num_frames"]) for batch in batches)


def test_parts_draw_the_same_change_of_contrast(videos):
    """The clips differ by the mean that a part keeps, which is one level for all its pixels."""
    made = views(videos, Augmentation(size=16, grayscale=0.0, blur=0.0))
    whole = next(iter(loader(made)))
    part = next(iter(parts_of(made, 2)[0]))
    frames = whole["frames"][:, :, :6]
    assert not torch.equal(part["frames"], frames)
    inside = (frames > 0) & (frames < 255) & (part["frames"] > 0) & (part["frames"] < 255)
    differences = (part["frames"].int() - frames.int()).masked_fill(~inside, 0)
    for clip, real in zip(differences.flatten(0, 1), inside.flatten(0, 1), strict=True):
        assert clip[real].float().std() < 1


def test_a_part_continues_from_the_state_of_any_part(videos):
    made = views(videos, FULL)
    first, second = parts_of(made, 2, seed=5)
    [*first.stream(4)]
    second.load_state_dict(first.state_dict())
    [batch] = second.stream(5)
    expected = [*parts_of(made, 2, seed=5)[1].stream(5)][4]
    assert same(batch, expected)


class Unreadable(PyAVEngine):
    """Cannot read the videos of these names."""

    def __init__(self, *names):
        super().__init__(16)
        self.names = tuple(f"{name}.mp4" for name in names)

    def read(self, readings):
        for reading in readings:
            if reading.path.endswith(self.names):
                raise VideoError(reading.path, "a frame is damaged")
        return super().read(readings)


class Agreement:
    """What connects the loaders of a test, each in its own thread."""

    def __init__(self, count):
        self.barrier, self.found = threading.Barrier(count, timeout=20), [{}] * count

    def of(self, place):
        def agree(found):
            self.found[place] = found
            self.barrier.wait()
            everyone = {k: v for part in self.found for k, v in part.items()}
            self.barrier.wait()
            return everyone

        return agree


def run_together(made, *names, stop=9):
    """Two loaders that share clips, their batches and errors; part 1 cannot read these videos."""
    agreement = Agreement(2)
    loaders = parts_of(made, 2, seed=1)
    batches, errors = [[], []], [None, None]
    for place, one in enumerate(loaders):
        one.agree = agreement.of(place)
    loaders[1].engine = Unreadable(*names)

    def run(place):
        try:
            batches[place] += loaders[place].stream(stop)
        except Exception as error:
            errors[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return loaders, batches, errors


@pytest.mark.filterwarnings("error")
def test_parts_leave_out_a_video_that_one_of_them_cannot_read(videos):
    made = views(videos)
    single = loader(made, seed=1)
    single.engine = Unreadable("d")
    with pytest.warns(RuntimeWarning, match="left out d: a frame is damaged"):
        whole = [*single.stream(9)]
    with pytest.warns(RuntimeWarning) as warned:
        loaders, batches, errors = run_together(made, "d")
    assert errors == [None, None]
    assert [str(one.message) for one in warned] == [
        "left out d: a frame is damaged (1 of 6 videos)"
    ]
    assert loaders[0].bad == loaders[1].bad == single.bad
    for one, *parts in zip(whole, *batches, strict=True):
        assert same(joined(parts), one)


@pytest.mark.filterwarnings("ignore:left out")
def test_parts_end_together_when_nothing_is_left(videos):
    made = views(videos)
    _, _, errors = run_together(made, *LENGTHS)
    assert all(isinstance(error, TooManyBadVideos) for error in errors)
    assert str(errors[0]) == str(errors[1])


def test_workers_that_are_not_forked_get_the_loader_without_its_group(videos):
    one = loader(views(videos), part=(1, 2), agree=lambda found: found)
    copy = pickle.loads(pickle.dumps(one))
    assert [item.id for item in copy.items_of(3)] == [item.id for item in one.items_of(3)]
    assert one.agree({}) == {}


def test_a_part_alone_does_not_leave_out_videos(videos):
    one = loader(views(videos), part=(0, 2))
    one.engine = Unreadable("a")
    with pytest.raises(VideoError, match="a frame is damaged"):
        [*one.stream(6)]


def test_parts_that_do_not_exist(videos):
    with pytest.raises(ValueError, match="T = 12 frames cannot be divided into 5 equal parts"):
        loader(views(videos), part=(0, 5))
    with pytest.raises(ValueError, match=r"part must be \(r, R\) with 0 <= r < R, got \(2, 2\)"):
        loader(views(videos), part=(2, 2))
    for kind in (SegmentTuples, SegmentClips):
        with pytest.raises(ValueError, match=f"the clips of {kind.__name__} have no parts"):
            loader(kind(videos, FULL, clip_frames=4), part=(0, 2))
