"""Items and batches of clips: their content, their reproducibility, and the handling of bad
files.
"""

import pytest
import torch

pytest.importorskip("av")

from grey import ACTIONS, FULL, LENGTHS, loader, pairs, same, video, views

from fastseq.video import (
    ClipLoader,
    PyAVEngine,
    TooManyBadVideos,
    VideoError,
    decode_side,
    probe,
)


@pytest.mark.parametrize("crop_base", ["clip", "span", "video"])
def test_views_show_the_frames_they_name(videos, crop_base):
    batches = [*loader(views(videos, crop_base=crop_base))]
    assert sorted(name for batch in batches for name in batch["ids"]) == sorted(LENGTHS)
    for batch in batches:
        assert batch["frames"].shape == (2, 2, 12, 3, 16, 16)
        assert batch["frames"].dtype == torch.uint8
        level = batch["frames"].float().mean((3, 4, 5))
        assert (level - 8 * batch["steps"]).abs().max() < 4  # padding repeats the last frame
        torch.testing.assert_close(batch["times"], batch["steps"].double() / 25, rtol=0, atol=1e-12)
        assert torch.equal(batch["lengths"], batch["valid"].sum(-1))
        for name, length, valid in zip(
            batch["ids"], batch["num_frames"], batch["valid"], strict=True
        ):
            assert length.tolist() == [LENGTHS[name]] * 2
            assert valid.all() == (LENGTHS[name] >= 12 and crop_base != "video")


def test_pairs_are_two_videos_of_one_action(videos):
    items = pairs(videos)
    assert items.left_out == [("alone", "the only video of action 'wave', pairs need two")]
    assert len(items) == 5
    partners = {name: set() for name in ACTIONS if name != "alone"}
    for epoch in range(20):
        for index, one in enumerate(items.videos):
            item = items.item(0, epoch, index)
            first, second = item.id.split(" with ")
            assert first == one.id != second
            assert item.num_frames.tolist() == [LENGTHS[first], LENGTHS[second]]
            assert (item.steps < item.num_frames[:, None]).all()
            assert item.valid.sum(1).tolist() == item.num_frames.clip(max=10).tolist()
            partners[first].add(second)
    swings = {"a", "b", "c"}
    expected = {name: swings - {name} for name in swings} | {"d": {"e"}, "e": {"d"}}
    assert partners == expected
    batch = next(iter(loader(items, 5)))
    assert batch["frames"].shape == (5, 2, 10, 3, 16, 16)
    level = batch["frames"].float().mean((3, 4, 5))
    assert (level - 8 * batch["steps"]).abs().max() < 4


@pytest.mark.parametrize("items", [pairs, views])
def test_context_frames_come_with_each_frame(videos, items):
    made = items(videos[:2], sampling="segment", num_frames=6, num_context=3, context_stride=4)
    batch = next(iter(loader(made)))
    assert batch["frames"].shape == (2, 2, 6, 3, 3, 16, 16)
    level = batch["frames"].float().mean((4, 5, 6))
    expected = (batch["steps"][..., None] - torch.tensor([8, 4, 0])).clamp(min=0)
    assert (level - 8 * expected).abs().max() < 4


@pytest.mark.parametrize("items", [pairs, views])
def test_batches_depend_on_seed_and_place_alone(videos, items):
    made = items(videos, FULL)
    straight = [*loader(made, seed=3).stream(7)]
    workers = [*loader(made, seed=3, workers=2).stream(7)]
    epochs = loader(made, seed=3)
    count = epochs.batches_per_epoch
    assert len(epochs) == count == len(made) // 2
    by_epoch = [batch for _ in range(4) for batch in epochs][:7]
    for one, two, three in zip(straight, workers, by_epoch, strict=True):
        assert same(one, two)
        assert same(one, three)
    first, second = straight[:count], straight[count : 2 * count]
    assert [b["ids"] for b in first] != [b["ids"] for b in second]
    other = next(iter(loader(made, seed=4)))
    assert not same(other, straight[0])


def test_a_saved_loader_continues_with_the_same_batches(videos):
    items = views(videos, FULL)
    whole = [*loader(items, seed=5).stream(8)]
    started = loader(items, seed=5, workers=1)
    stream = started.stream(8)
    [next(stream) for _ in range(4)]  # in the middle of the second epoch
    state = started.state_dict()
    stream.close()
    continued = loader(items, seed=5)
    continued.load_state_dict(state)
    for one, two in zip(continued.stream(8), whole[4:], strict=True):
        assert same(one, two)
    for name, wrong in (
        ("seed", loader(items, seed=6)),
        ("batch_size", loader(items, 3, seed=5)),
        ("batch_size", loader(items, 2, seed=5, world_size=2)),
        ("items", loader(views(videos[1:], FULL), seed=5)),
        ("last", loader(items, seed=5, last="wrap")),
    ):
        use = "the same videos" if name == "items" else "the saved value"
        with pytest.raises(ValueError, match=f"the saved loader had {name} = .*Use {use}$"):
            wrong.load_state_dict(state)
    with pytest.raises(ValueError, match="other videos, or the same ones in another order"):
        loader(views(videos[::-1], FULL), seed=5).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_never_come_with_the_numbers_of_another_batch(videos, workers):
    made = loader(views(videos), workers=workers)
    first = iter(made)
    next(first)
    assert len([*made]) == 2  # the rest of the epoch, by a second iterator
    with pytest.raises(RuntimeError, match="moved from batch 1 to 3 while it was iterated over"):
        next(first)
    for batch in made:  # the next epoch, stopped in the middle
        level = batch["frames"].float().mean((3, 4, 5))
        assert (level - 8 * batch["steps"]).abs().max() < 4
        break
    assert len([*made]) == 2
    stream = made.stream(9)
    next(stream)
    made.load_state_dict(made.state_dict() | {"position": 0})
    with pytest.raises(RuntimeError, match="moved from batch 7 to 0"):
        next(stream)


def order(items, batch_size, epochs=1, **options):
    made = ClipLoader(items, batch_size, engine=PyAVEngine(16), **options)
    stop = epochs * made.batches_per_epoch
    return [[item.id for item in made.items_of(batch)] for batch in range(stop)]


def test_every_epoch_is_a_new_order_and_the_last_batch_follows_the_policy(videos):
    items = views(videos[:5])
    dropped = order(items, 2, epochs=3)
    assert [len(batch) for batch in dropped] == [2] * 6
    for epoch in range(3):
        first, second = dropped[2 * epoch : 2 * epoch + 2]
        assert len({*first, *second}) == 4
    assert len({str(dropped[2 * epoch :][:2]) for epoch in range(3)}) == 3
    kept = order(items, 2, last="keep")
    assert [len(batch) for batch in kept] == [2, 2, 1]
    assert {name for batch in kept for name in batch} == {one.id for one in videos[:5]}
    wrapped = order(items, 2, last="wrap")
    assert wrapped[:2] == kept[:2]
    assert wrapped[2] == [*kept[2], kept[0][0]]
    assert [len(batch) for batch in order(items, 8, epochs=2)] == [5, 5]  # at least one


@pytest.mark.parametrize("last", ["drop", "wrap"])
def test_ranks_share_an_epoch(videos, last):
    items = views(videos[:5])
    ranks = [order(items, 1, rank=rank, world_size=2, last=last) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == (2 if last == "drop" else 3)
    seen = [name for both in zip(*ranks, strict=True) for batch in both for name in batch]
    alone = [name for batch in order(items, 2, last=last) for name in batch]
    assert seen == alone
    assert len(order(items, 4, rank=1, world_size=2)[0]) == 4  # filled up, not shortened


def with_bad(videos, tmp_path, good, bad):
    tmp_path.mkdir(exist_ok=True)
    made = [video(f"good{i}", videos[0].path) for i in range(good)]
    for i in range(bad):
        (tmp_path / f"zero{i}.mp4").write_bytes(b"")
        made.insert(5, video(f"bad{i}", tmp_path / f"zero{i}.mp4"))
    return made


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("items", [views, pairs])
def test_a_bad_video_is_replaced_counted_and_named(videos, tmp_path, workers, items):
    made = items(with_bad(videos, tmp_path, 20, 1), num_frames=3)
    reader = loader(made, 21, workers=workers)
    with pytest.warns(RuntimeWarning, match=r"left out bad0: the file is empty.*\(1 of 21") as all_:
        batches = [*reader]
    assert len(all_) == 1  # reported once
    names = [name for batch in batches for name in batch["ids"]]
    assert len(names) == 21
    assert not any("bad" in name for name in names)
    assert reader.bad == {made.videos[5].path: "the file is empty (0 bytes)"}
    # A loader that knows it from the start, as after resuming, returns the same batches.
    again = loader(made, 21)
    again.load_state_dict(reader.state_dict() | {"position": 0})
    assert all(same(one, two) for one, two in zip(again, batches, strict=True))
    expected = made.item(0, 0, 6)
    replaced = made.item(0, 0, 5, bad=reader.bad)
    assert replaced.id.split(" with ")[0] == expected.id.split(" with ")[0] == "good5"


def test_a_moved_folder_does_not_count_its_bad_videos_twice(videos, tmp_path):
    made = with_bad(videos, tmp_path / "here", 20, 1)
    reader = loader(views(made, num_frames=3), 21)
    with pytest.warns(RuntimeWarning, match=r"\(1 of 21"):
        expected = [*reader.stream(3)]
    state = reader.state_dict() | {"position": 0}
    (tmp_path / "here").rename(tmp_path / "there")
    for one in made:
        one.path = one.path.replace("here", "there")
    moved = loader(views(made, num_frames=3), 21)
    moved.load_state_dict(state)
    assert moved.bad == {made[5].path: "the file is empty (0 bytes)"}
    assert all(same(one, two) for one, two in zip(moved.stream(3), expected, strict=True))


@pytest.mark.parametrize(("good", "most"), [(20, 10), (1088, 11)])
def test_more_than_ten_bad_videos_and_one_percent_stop(videos, tmp_path, good, most):
    made = views(with_bad(videos, tmp_path, good, most + 1), num_frames=3)
    bad = [video for video in made.videos if video.id.startswith("bad")]
    reader = loader(made)
    for number, one in enumerate(bad[:most], start=1):
        with pytest.warns(RuntimeWarning, match=rf"left out {one.id}: .* \({number} of "):
            reader.set_aside(VideoError(one.path, "the file is empty (0 bytes)"))
    with pytest.raises(TooManyBadVideos) as caught:
        reader.set_aside(VideoError(bad[most].path, "the file is empty (0 bytes)"))
    assert f"{most + 1} of {len(made)} videos cannot be read, more than {most}:" in str(
        caught.value
    )
    for one in bad:
        assert f"\n  {one.id}: the file is empty (0 bytes)" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("items", [views, pairs])
def test_the_videos_that_are_left_are_enough(videos, tmp_path, workers, items):
    made = items(with_bad(videos, tmp_path, 5, 2), num_frames=3)
    reader = loader(made, 7, workers=workers)
    with pytest.warns(RuntimeWarning):
        batches = [*reader.stream(3)]
    assert len(reader.bad) == 2
    assert {name[:4] for batch in batches for name in batch["ids"]} == {"good"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("items", "good"), [(views, 0), (pairs, 1)])
def test_training_stops_when_nothing_is_left(videos, tmp_path, workers, items, good):
    made = items(with_bad(videos, tmp_path, good, 2), num_frames=3)
    reader = loader(made, 1, workers=workers)
    with pytest.warns(RuntimeWarning), pytest.raises(TooManyBadVideos) as caught:
        [*reader.stream(9)]
    assert f"2 of {good + 2} videos cannot be read, nothing is left to train on:" in str(
        caught.value
    )
    assert len(reader.bad) == 2
    again = loader(made, 1)
    with pytest.raises(TooManyBadVideos, match="nothing is left"):
        again.load_state_dict(reader.state_dict())


def test_a_file_that_takes_too_long_is_set_aside(videos):
    engine = PyAVEngine(16, time_limit=1e-6)
    with pytest.raises(TooManyBadVideos, match=r"a: took longer than the limit of 1e-06 s"):
        next(iter(ClipLoader(views(videos[:1]), 1, engine=engine)))


def test_workers_end_with_the_iteration(videos):
    import multiprocessing

    before = set(multiprocessing.active_children())
    stream = loader(views(videos), workers=2).stream(9)
    next(stream)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    stream.close()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()


def test_what_probe_gives_will_do(videos):
    info = probe(videos[0].path)
    item = views([info]).item(0, 0, 0)
    assert item.id == info.path
    assert (decode_side(224, None), decode_side(64, 96)) == (256, 96)


def test_refusals(videos):
    items = views(videos)
    with pytest.raises(ValueError, match="no videos to train on"):
        views([])
    with pytest.raises(ValueError, match="each of the 1 videos is the only one of its action"):
        pairs(videos[:1])
    with pytest.raises(ValueError, match="span must be"):
        views(videos, crop_base="span", span=(1.0, 0.3))
    for option, least in (
        ("num_context", 1),
        ("context_stride", 0),
        ("positive_window", 1),
        ("side", 1),
    ):
        with pytest.raises(ValueError, match=f"{option} must be at least {least}, got {least - 1}"):
            views(videos, **{option: least - 1})
    for options, message in (
        ({"engine": PyAVEngine(24)}, "makes frames of size 24, the items' augmentation is for 16"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size, got 2 and 2"),
        ({"last": "pad"}, "last must be one of drop, keep, wrap, got 'pad'"),
        (
            {"last": "keep", "world_size": 2},
            'last="keep" makes batches of different sizes on ranks',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ClipLoader(items, **{"batch_size": 2, "engine": PyAVEngine(16)} | options)
