"""Encoders with one clip's T over 2 and 4 gloo ranks, compared with one process."""

import pytest
import torch
from processes import launch, said, wait
from split_models import CASES, LONG, main

from training.models import ContextEncoder, SmallCNN
from training.support.time_split import TimeSplit

RANKS = (2, 4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of ranks -> the results of each."""
    folder = tmp_path_factory.mktemp("split")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for num in (1, *RANKS):
            processes = launch(main, folder, num=num)
            assert wait(processes) == [0] * num, "\n".join(said(p) for p in processes)
    return {
        num: [torch.load(folder / f"split{num}_{rank}.pt") for rank in range(num)]
        for num in (1, *RANKS)
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


@pytest.mark.process
@pytest.mark.parametrize("num", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_a_clip_over_ranks_is_that_of_one_process(results, name, num):
    (one,) = results[1]
    expected, parts = one[name], [rank[name] for rank in results[num]]
    for key in ("h", "z"):
        whole = torch.cat([part[key] for part in parts], 1)
        assert difference(whole, expected[key]) < 1e-10
    largest = max(gradient.abs().max() for gradient in expected["gradient"].values())
    assert 1e-3 < largest < 1e6
    for part in parts:
        assert part["gradient"].keys() == expected["gradient"].keys()
        for parameter, gradient in expected["gradient"].items():
            worst = (part["gradient"][parameter] - gradient).abs().max()
            assert worst < 1e-10 * largest, parameter
        for buffer, value in expected["statistics"].items():
            assert difference(part["statistics"][buffer].double(), value.double()) < 1e-10, buffer


@pytest.mark.process
@pytest.mark.parametrize("num", RANKS)
def test_one_rank_alone_embeds_a_whole_video_in_evaluation(results, num):
    assert torch.equal(results[num][0]["evaluated"], results[1][0]["evaluated"])


@pytest.mark.process
def test_what_a_rank_keeps_for_backward_shrinks_with_the_number_of_ranks(results):
    kept = {num: max(rank["kept"] for rank in ranks) for num, ranks in results.items()}
    assert kept[1] > 400 * LONG, kept  # the backbone's vectors and the inputs of the branches
    for num in RANKS:
        assert kept[num] < 1.02 * kept[1] / num, kept


def test_a_part_of_a_video_without_context_is_refused():
    model = ContextEncoder(SmallCNN(16), conv_layers=1, conv_size=8, context_stride=1)
    model.time_split = TimeSplit(2, 0, None)
    with pytest.raises(ValueError, match=r"lacks the context .* \(N, T, 2, 3, H, W\)"):
        model.encode(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8))
    assert model.eval().encode(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)).shape == (1, 4, 128)
