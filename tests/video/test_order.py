"""Orders of an epoch: shares, ranks, every video once; and the loader that follows them."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from fastseq.video import Augmentation, ClipLoader, PyAVEngine, TwoViews
from fastseq.video.order import ByShard, Mixture, Shuffled, repeats_of

PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)


def items_of(count):
    return TwoViews(
        [
            SimpleNamespace(
                id=str(k), path=f"{k}.mp4", frames=60, fps=25.0, width=48, height=36, action="all"
            )
            for k in range(count)
        ],
        6,
        PLAIN,
    )


def loader(items, batch_size=2, **options):
    return ClipLoader(items, batch_size, engine=PyAVEngine(16), **options)


def ids(made, epochs=1):
    """Ids by batch."""
    stop = epochs * made.batches_per_epoch
    return [[item.id for item in made.items_of(batch)] for batch in range(stop)]


def test_shuffled_is_the_permutation_of_earlier_versions():
    expected = [[0, 2, 1, 3], [2, 0, 3, 1], [3, 2, 1, 0]]
    assert [Shuffled(4, 7).order(epoch).tolist() for epoch in range(3)] == expected
    made = loader(items_of(4), 4, seed=7)
    assert [made.order(epoch).tolist() for epoch in range(3)] == expected
    assert ids(made, 3) == [[str(k) for k in order] for order in expected]


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 1, 0.5], [1, 1000, 1], [1.5e308, 1.5e308, 1]])
def test_a_mixture_has_the_shares_of_its_weights(weights):
    sources = np.array([0] * 50 + [1] * 7 + [2] * 20)
    mixture = Mixture(sources, weights, seed=3)
    shares = np.array(weights) / max(weights)
    exact = 77 * shares / shares.sum()
    assert mixture.places.sum() == mixture.count == 77
    assert (np.abs(mixture.places - exact) < 1).all()
    for epoch in range(5):
        order = mixture.order(epoch)
        assert order.dtype == np.int64
        assert np.bincount(sources[order], minlength=3).tolist() == mixture.places.tolist()
        for source, places in enumerate(mixture.places):
            members = np.flatnonzero(sources == source)
            times = np.bincount(order, minlength=77)[members]
            assert times.sum() == places
            assert set(times) <= {places // len(members), -(-places // len(members))}
        assert np.array_equal(order, Mixture(sources, weights, seed=3).order(epoch))
    orders = {str(mixture.order(epoch)) for epoch in range(5)}
    assert len(orders) == 5
    assert str(Mixture(sources, weights, seed=4).order(0)) not in orders


def test_largest_remainders_by_hand():
    assert Mixture([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1]).places.tolist() == [4, 3, 3]
    assert Mixture([0, 1, 1, 1], [0.6, 0.4]).places.tolist() == [2, 2]  # 2.4 and 1.6


def test_a_mixture_is_shuffled_and_uses_every_video_in_time():
    sources = np.repeat([0, 1], [40, 10])
    mixture = Mixture(sources, [1, 1])
    orders = np.stack([mixture.order(epoch) for epoch in range(400)])
    share = (sources[orders] == 1).mean(0)  # at each place
    assert share.min() > 0.35
    assert share.max() < 0.65
    counts = np.bincount(orders.ravel(), minlength=50) / 400
    assert np.abs(counts[:40] - 25 / 40).max() < 0.1
    assert np.abs(counts[40:] - 2.5).max() < 0.1


def test_a_repeated_item_is_drawn_anew():
    made = loader(items_of(6), 6, order=Mixture([0] * 5 + [1], [1, 2], seed=1), seed=1)
    items = [item for item in made.items_of(0) if item.id == "5"]
    assert len(items) == 4
    assert len({str(item.steps) for item in items}) == 4
    first = made.items.item(1, 0, 5)
    assert np.array_equal(items[0].steps, first.steps)
    assert np.array_equal(made.items.item(1, 0, 5, (), 2).steps, items[2].steps)
    order = np.array([5, 1, 5, 2, 1, 5, 0])
    seen = Counter()
    for value, repeat in zip(order, repeats_of(order), strict=True):
        assert repeat == seen[value]
        seen[value] += 1
    assert repeats_of(np.random.default_rng(0).permutation(50)) is None


SHARDS = {
    "even": np.repeat([4, 9, 2], 8),
    "uneven": np.repeat([0, 1, 2, 3, 4], [1, 20, 3, 7, 2]),
    "one": np.zeros(11, dtype=int),
    "mixed": np.array([5, -1, 5, 5, -1, 5, 0, 0, -1, 0]),
    "none": np.full(9, -1),
}


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_divide_the_shards(kind, world_size):
    shards = SHARDS[kind]
    count = len(shards)
    for epoch in range(6):
        ranks = [ByShard(shards, 5, rank, world_size).order(epoch) for rank in range(world_size)]
        assert {len(order) for order in ranks} <= {count // world_size, -(-count // world_size)}
        whole = np.concatenate(ranks)
        assert sorted(whole.tolist()) == list(range(count))  # every video once, by one rank
        runs = [
            int(shard)
            for shard, before in zip(shards[whole], [-2, *shards[whole][:-1]], strict=True)
            if shard != before or shard < 0
        ]
        assert Counter(runs) == Counter(
            {int(s): 1 if s >= 0 else int((shards < 0).sum()) for s in set(shards.tolist())}
        )  # one shard after the other
        readers = Counter(s for order in ranks for s in set(shards[order].tolist()) if s >= 0)
        assert sum(n - 1 for n in readers.values()) <= world_size - 1


def test_videos_without_a_shard_are_permuted_among_the_shards():
    shards = np.array([-1, -1, -1, 0, 0, 1, 1])
    order = ByShard(shards)
    neighbours = set()
    for epoch in range(200):
        neighbours |= set(pairwise(shards[order.order(epoch)].tolist()))
    assert neighbours == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    apart = [np.ptp(np.flatnonzero(shards[order.order(epoch)] < 0)) > 2 for epoch in range(50)]
    assert any(apart)


def test_shards_and_their_videos_are_permuted_each_epoch():
    order = ByShard(np.repeat([0, 1, 2], [3, 3, 3]), 1)
    drawn = [order.order(epoch) for epoch in range(600)]
    first = Counter(int(one[0]) for one in drawn)
    assert sorted(first) == list(range(9))
    assert all(abs(number - 600 / 9) < 40 for number in first.values())
    assert np.array_equal(order.order(3), ByShard(np.repeat([0, 1, 2], 3), 1).order(3))


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("last", ["drop", "wrap"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_all_ranks_have_the_same_number_of_batches(kind, last, batch_size):
    shards = SHARDS[kind]
    items, count = items_of(len(shards)), len(shards)
    for world_size in (1, 2, 3):
        ranks = [
            loader(
                items,
                batch_size,
                rank=rank,
                world_size=world_size,
                last=last,
                order=ByShard(shards, 0, rank, world_size),
            )
            for rank in range(world_size)
        ]
        assert len({made.batches_per_epoch for made in ranks}) == 1
        (left_over,) = {made.left_over for made in ranks}
        seen = Counter(name for made in ranks for batch in ids(made) for name in batch)
        places = sum(seen.values())
        assert left_over == count - places
        if last == "wrap":
            assert set(seen) == {str(k) for k in range(count)}
        elif left_over >= 0:
            assert max(seen.values()) == 1  # what is left out is counted, nothing is repeated
        by_rank = [{name for batch in ids(made) for name in batch} for made in ranks]
        assert sum(map(len, by_rank)) == len(set().union(*by_rank))


def test_left_over_of_the_shuffled_order():
    items = items_of(11)
    assert loader(items, 2).left_over == 1
    assert loader(items, 2, last="wrap").left_over == -1
    assert loader(items, 2, last="keep").left_over == 0
    assert loader(items, 20).left_over == 0  # one smaller batch
    assert loader(items, 2, world_size=2).left_over == 3
    assert loader(items, 10, world_size=2).left_over == -9  # one batch, filled up


def test_an_epoch_is_drawn_once():
    drawn = []

    class Counted(Shuffled):
        def order(self, epoch):
            drawn.append(epoch)
            return super().order(epoch)

    made = loader(items_of(6), order=Counted(6))
    for batch in (0, 1, 2, 3, 2, 4, 3, 5, 6, 7, 5):  # as a reader that is ahead
        made.items_of(batch)
    assert drawn == [0, 1, 2]
    made.items_of(0)
    assert drawn == [0, 1, 2, 0]  # the last two are kept


ORDERS = {
    "mixture": lambda: Mixture([0] * 7 + [1] * 2, [1, 1], seed=2),
    "by shard": lambda: ByShard(np.repeat([0, 1, 2], 3), seed=2),
    "shuffled": lambda: Shuffled(9, seed=2),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_a_saved_loader_continues_in_its_order(kind, tmp_path):
    items = items_of(9)
    made = loader(items, seed=2, order=ORDERS[kind]())
    expected = ids(made, 3)
    made.position = 6
    torch.save(made.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = loader(items, seed=2, order=ORDERS[kind]())
    again.load_state_dict(state)
    found = [[item.id for item in again.items_of(k)] for k in range(again.position, len(expected))]
    assert found == expected[6:]
    for other in ORDERS.keys() - {kind}:
        with pytest.raises(
            ValueError, match=f"an order with kind = '{kind}', this one has '{other}"
        ):
            loader(items, seed=2, order=ORDERS[other]()).load_state_dict(state)


def test_other_orders_of_the_same_kind_are_refused():
    items = items_of(9)
    sources, shards = [0] * 7 + [1] * 2, np.repeat([0, 1, 2], 3)
    for saved, mine, name in (
        (Mixture(sources, [1, 1]), Mixture(sources, [1, 2]), "weights"),
        (Mixture(sources, [1, 1]), Mixture(sources[::-1], [1, 1]), "sources_checksum"),
        (Mixture(sources, [1, 1]), Mixture(sources, [1, 1], seed=1), "seed"),
        (ByShard(shards), ByShard(shards[::-1]), "shards_checksum"),
    ):
        state = loader(items, order=saved).state_dict()
        with pytest.raises(ValueError, match=f"an order with {name} = .*Use the saved order"):
            loader(items, order=mine).load_state_dict(state)
    state = loader(items, 2, order=ByShard(shards)).state_dict()
    two = loader(items, 1, world_size=2, order=ByShard(shards, world_size=2))
    with pytest.raises(ValueError, match=r"world_size of 1, this one has 2: .*Use 1 ranks"):
        two.load_state_dict(state)


def test_checkpoints_without_an_order_resume():
    items = items_of(9)
    state = loader(items, seed=2).state_dict()
    del state["order"]
    state["position"] = 5
    made = loader(items, seed=2)
    made.load_state_dict(state)
    assert made.position == 5
    with pytest.raises(ValueError, match="kind = 'shuffled', this one has 'mixture'"):
        loader(items, seed=2, order=ORDERS["mixture"]()).load_state_dict(state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Mixture([0, 1], [1]),
            ValueError,
            "sources must be 0 to 0 for 1 weights, got 0 to",
        ),
        (lambda: Mixture([0, 0], [1, 3]), ValueError, "source 1 has the weight 3, but none of the"),
        (lambda: Mixture([0, 1], [1, 0]), ValueError, "weights must be positive .* got .1.0, 0.0"),
        (lambda: Mixture([0, 1], [1, float("nan")]), ValueError, "weights must be positive"),
        (
            lambda: Mixture([0, 1], 1.0),
            TypeError,
            "weights must be numbers, .*got 1.0",
        ),
        (lambda: Mixture([0, 1], ["1", 2]), TypeError, "weights must be a number, got str '1'"),
        (lambda: Mixture([0.5], [1]), ValueError, "sources must be integers, one for each item"),
        (lambda: Mixture([], [1]), ValueError, "sources must be integers, one for each item"),
        (lambda: ByShard([0, 1], world_size=3), ValueError, "2 videos are too few for 3 ranks"),
        (lambda: ByShard([0, -2]), ValueError, "shards count from 0, -1 = none, got -2"),
        (lambda: ByShard([0], rank=1), ValueError, "expected 0 <= rank < world_size, got 1 and 1"),
        (lambda: Shuffled(0), ValueError, "count must be at least 1, got 0"),
        (lambda: Shuffled(3, -1), ValueError, "seed must be at least 0, got -1"),
        (lambda: loader(items_of(3), order="shards"), TypeError, "order must be .* got str"),
        (lambda: loader(items_of(3), order=Shuffled(4)), ValueError, "order is of 4 .* are 3"),
        (
            lambda: loader(items_of(3), world_size=2, order=ByShard([0] * 3)),
            ValueError,
            "the order is that of rank 0 of 1, the loader's is 0 of 2",
        ),
    ],
)
def test_wrong_orders(call, error, message):
    with pytest.raises(error, match=message):
        call()
