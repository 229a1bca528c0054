"""VCLR on two processes with gloo on the CPU, compared with one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import launch, said, train, wait
from runs import numbers, same, weights
from vclr_cases import CLIPS, RECIPE, tuples
from vclr_ranks import main, random_clips, trainer_of

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one rank, and the pair of results of two ranks'."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for num in (1, 2):
            processes = launch(main, folder, num=num)
            assert wait(processes) == [0] * num, said(processes[0])
    one, *two = (torch.load(folder / f"ranks{name}.pt") for name in ("1_0", "2_0", "2_1"))
    return one, two


@pytest.mark.parametrize("what", ["steps", "parts", "clips"])
def test_two_ranks_train_as_one(results, what):
    """With frozen batch norms: weights, momentum encoder and queues after two steps."""
    one, two = results[0][what], [rank[what] for rank in results[1]]
    assert one["finite"] == [True, True]
    for rank in two:
        np.testing.assert_allclose(rank["loss"], one["loss"], rtol=1e-6)
        for a, b in zip(rank["losses"], one["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-6)
        assert rank["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            torch.testing.assert_close(rank["state"][key], value, rtol=1e-6, atol=1e-8, msg=key)
    assert one["state"]["queues.inter.pointer"] == 2 * 4 * 3 % 20
    assert same(two[0]["state"], two[1]["state"])
    assert not any(rank["shuffles"] for rank in (one, *two))  # no reason to shuffle


def test_no_rank_steps_where_one_has_no_finite_loss(results):
    one, two = results[0]["broken"], [rank["broken"] for rank in results[1]]
    for rank in (one, *two):
        assert rank["finite"] == [True, False]
        assert rank["state"]["momentum.n_averaged"] == 2
        assert rank["state"]["queues.video.pointer"] == 4
    assert same(two[0]["state"], two[1]["state"])


@pytest.mark.parametrize(("what", "options"), [("shuffled", []), ("shuffled clips", CLIPS)])
def test_keys_are_normalised_in_shuffled_groups(results, tmp_path, what, options):
    """Each rank gets the features that its clips have among the clips they were mixed with."""
    one, two = results[0][what], [rank[what] for rank in results[1]]
    assert not one["shuffles"]
    assert all(rank["shuffles"] for rank in two)
    trainer = trainer_of(tmp_path, *options, frozen=False)
    clips, momentum = random_clips(trainer.cfg.data.tuple_frames), trainer.model.momentum.module
    order = np.random.default_rng([0, 1, 0]).permutation(8).reshape(2, 4)
    assert {*order[0]} not in ({0, 1, 2, 3}, {4, 5, 6, 7})  # otherwise this would test nothing
    expected = torch.empty(8, momentum.backbone.out_features, dtype=torch.float64)
    with torch.no_grad():
        for group in order:
            expected[group] = momentum.clip_features(clips[torch.from_numpy(group)][None])[0]
    got = torch.cat([rank["features"] for rank in two])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(one["features"], expected, atol=1e-3)


def test_two_ranks_end_and_resume_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)

    def start(run: str, *options: str, **environment: str) -> list:
        arguments = ["tiny.yaml", f"train.run_dir={run}", "train.log_every=1", *options]
        return launch(train, tuples, arguments, num=2, **environment)

    whole = start("whole")
    assert wait(whole) == [0, 0], said(whole[0])
    assert wait(start("cut", STOP_AT="SIGTERM:6")) == [143, 143]
    assert wait(start("cut", "--resume")) == [0, 0]
    assert same(weights("cut"), weights("whole"))
    assert numbers("cut") == numbers("whole")
