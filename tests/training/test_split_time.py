"""data.split_time: ranks that share every clip, compared with one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATH, launch, said, train, wait
from runs import RECIPE, numbers, same, weights
from split_ranks import DIVISIONS, broken, main
from test_distributed import check_equal, difference
from test_supervised import write_labels
from two_ranks import squares

import training.train
from training.loop import resuming
from training.loop.resuming import check_shards
from training.recipe.load import ConfigError, load_config
from training.recipe.ranks import check_ranks
from training.runs.log import read_lines, read_log
from training.support.command import UserError

pytestmark = pytest.mark.process

STILL = ["model.dropout=0", "model.fc_dropout=0", "train.chunk_frames=0", "optim.lr=1e-5"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(ranks, data.split_time) -> the results of each rank."""
    folder = tmp_path_factory.mktemp("split")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for num in (1, 2, 4):
            processes = launch(main, folder, num=num)
            assert wait(processes) == [0] * num, said(processes[0])
    return {
        (ranks, parts): [
            torch.load(folder / f"split{parts}_{rank}_of_{ranks}.pt") for rank in range(ranks)
        ]
        for ranks, parts in DIVISIONS
    }


@pytest.mark.parametrize(
    ("ranks", "parts", "name"),
    [(*d, name) for d, names in DIVISIONS.items() if d != (1, 1) for name in names],
)
def test_ranks_that_share_clips_have_the_gradient_of_one(results, ranks, parts, name):
    expected = results[1, 1][0][name]
    for rank in results[ranks, parts]:
        check_equal(rank[name], expected, 1e-9)
        for key, buffer in expected["statistics"].items():
            assert difference(rank[name]["statistics"][key], buffer) < 1e-9, key


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)


def start(run: str, *options: str, loader=squares, num: int = 2, parts: int = 2, **environment):
    arguments = ["tiny.yaml", f"train.run_dir={run}", "train.log_every=1", *options]
    return launch(train, loader, [*arguments, f"data.split_time={parts}"], num=num, **environment)


def test_a_run_that_shares_clips_resumes_bit_for_bit(here):
    assert wait(start("whole", "train.steps=6")) == [0, 0]
    assert wait(start("cut", "train.steps=6", STOP_AT="SIGTERM:2")) == [143, 143]
    assert wait(start("cut", "train.steps=6", "--resume")) == [0, 0]
    assert same(weights("cut"), weights("whole"))
    assert numbers("cut") == numbers("whole")


def test_a_run_may_continue_with_whole_clips(here):
    steps = [*STILL, "train.steps=6"]
    assert wait(start("one", *steps, num=1, parts=1)) == [0]
    assert wait(start("cut", *steps, STOP_AT="SIGTERM:2")) == [143, 143]
    again = start("cut", *steps, "--resume", parts=1)
    assert wait(again) == [0, 0]
    assert "saved with data.split_time 2 (now 1): it continues, but not" in said(again[0])
    for a, b in zip(read_log("one"), read_log("cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_video_that_one_rank_cannot_read_is_left_out_on_all(here):
    one = start("one", *STILL, loader=broken, num=1, parts=1, BROKEN="3 7")
    two = start("two", *STILL, loader=broken, BROKEN="3 7")
    assert wait(one) == [3]
    assert wait(two) == [0, 0]
    for a, b in zip(read_log("one"), read_log("two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["bad_videos"] == b["bad_videos"]
    assert read_log("two")[-1]["bad_videos"] == 2
    assert said(two[0]).count("left out video3: is broken") == 1
    assert said(two[1]) == ""


def test_too_many_bad_videos_end_all_ranks_with_one_message(here):
    two = start("run", loader=broken, BROKEN=" ".join(map(str, range(11))))
    assert wait(two) == [1, 1]
    assert said(two[0]).count("error: 11 of 12 videos cannot be read, more than 10:") == 1
    assert said(two[1]) == ""


def test_the_plan_names_the_part_of_a_rank(here):
    described = start("run", "--dry-run")
    assert wait(described) == [0, 0]
    words = "32 frames of 16 px, 16 on each of 2 ranks (4 of each clip)"
    assert words in said(described[0])


def test_torchrun_trains_on_videos(video_folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "training.train", "tiny.yaml", f"data.folder={video_folder}"]
    command += ["data.split_time=2", "train.run_dir=run", "train.steps=2", "train.log_every=1"]
    environment = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_log("run")] == [1, 2]
    assert all(line["loss"] > 0 for line in read_log("run"))


@pytest.mark.parametrize("cache", ["ram", "features"])
def test_cached_videos_are_shared_in_parts(video_folder, cache):
    """Rank 0 also evaluates, in which whole videos are embedded by one rank."""
    options = [f"data.cache={cache}", "model.train_from=none", "model.random_frozen=true"]
    options += ["train.steps=4", "train.evaluate_every=2", "augmentation.jitter=0", *STILL]
    options += ["loss.scl.weight=1", "loss.classification.weight=1", "data.test_split=train"]
    options += ["loss.classification.dropout=0"]
    write_labels(video_folder)
    loader = training.train.training_loader
    for run, num in (("one", 1), ("two", 2)):
        done = start(run, *options, loader=loader, num=num, parts=num)
        assert wait(done) == [0] * num, said(done[0])
    assert len(read_lines(Path("two/evaluations.jsonl"))) == 3
    for a, b in zip(read_log("one"), read_log("two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_a_run_of_shards_resumes_with_as_many_groups(monkeypatch):
    order = {"kind": "by shard", "world_size": 2}
    monkeypatch.setattr(resuming, "world_size", lambda: 4)
    check_shards(order, "run", parts=2)
    check_shards({"kind": "shuffled"}, "run", parts=1)
    with pytest.raises(
        UserError, match="reads shards on 2 ranks, and this is a resume on 4: ranks"
    ):
        check_shards(order, "run", parts=1)
    words = r"on 2 groups, and this is a resume on 1 \(data.split_time=4\): groups .*node=8"
    with pytest.raises(UserError, match=words):
        check_shards(order, "run", parts=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["loss.soft_dtw.weight=1", "data.clips=videos"],
            "but loss.soft_dtw compares whole clips, so",
        ),
        (["loss.tcn.weight=1", "data.sampling=anchors"], "but loss.tcn compares whole clips, so"),
        (
            ["loss.scl.weight=1", "loss.nearest.weight=1"],
            "but loss.nearest compares whole clips, so",
        ),
    ],
)
def test_recipes_that_need_whole_clips_are_refused(here, options, message):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny.yaml", ["data.split_time=2", *options])
    assert str(caught.value).startswith("data.split_time: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (1, ["data.split_time=2"], "torchrun --nproc-per-node 2 -m training.train, or set"),
        (3, ["data.split_time=2"], "but there are 3 ranks; start a multiple of 2"),
        (2, ["data.split_time=4", "data.num_frames=9"], "but there are 2 ranks; start a multiple"),
        (2, ["data.split_time=2", "data.num_frames=9"], "the data.num_frames=9 frames of a clip"),
        (6, ["data.split_time=2"], "2 items cannot be shared by 3 groups of 2 ranks"),
        (3, [], "2 items cannot be shared by 3 ranks; choose a multiple of the number of ranks"),
        (4, ["data.split_time=2", "loss.scl.negatives=batch"], "or data.split_time=4"),
    ],
)
def test_ranks_that_cannot_share_a_recipe_are_refused(here, ranks, options, message):
    cfg = load_config("tiny.yaml", options)
    with pytest.raises(ConfigError) as caught:
        check_ranks(cfg, ranks)
    assert message in str(caught.value)
    good = [*options, "data.batch_size=4", "data.num_frames=8", "loss.scl.negatives=cross"]
    check_ranks(load_config("tiny.yaml", good), 4)
