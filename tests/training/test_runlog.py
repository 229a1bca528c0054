import math
from pathlib import Path

import pytest
import torch

from training.runs.log import Pace, collapse_measures, read_log
from training.train import main


def test_collapse_measures():
    torch.manual_seed(0)
    same_everywhere = collapse_measures(torch.ones(10, 8) + 1e-7 * torch.randn(10, 8))
    assert same_everywhere["pairwise_distance"] < 1e-5
    opposite = torch.tensor([[1.0, 0], [-1, 0]]).repeat(5, 1)
    measures = collapse_measures(opposite)
    assert measures["pairwise_distance"] == pytest.approx(2 * 25 / 45)
    assert measures["effective_rank"] == pytest.approx(1)
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert collapse_measures(5 * corners)["effective_rank"] == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_collapse_measures_of_what_is_not_finite(value):
    rows = torch.eye(6)
    rows[2, 3] = value
    assert all(math.isnan(measure) for measure in collapse_measures(rows).values())


def test_log_continues_after_the_checkpoint(recipe):
    main([recipe, "train.run_dir=run"])
    path = Path("run/log.jsonl")
    path.write_text(path.read_text() + '{"step": 16, "lo')  # an incomplete line
    assert [line["step"] for line in read_log("run")] == [4, 8, 12]


def test_a_run_that_becomes_slow_says_so_once(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    pace = Pace()
    assert [pace.remark(100, s) for s in (9, 1, 1)] == [""] * 3  # the first steps are a warm-up
    assert pace.remark(100, 2.4) == ""
    assert "takes 33 frames/s, at first it took 100" in pace.remark(100, 3)
    assert pace.remark(100, 30) == ""


def test_no_thread_waits_for_another_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    pace = Pace()
    assert [pace.remark(100, seconds) for seconds in (1, 1, 1, 30)] == [""] * 4


def test_the_remark_comes_with_the_progress(recipe, capsys, monkeypatch):
    monkeypatch.setattr(Pace, "remark", lambda self, frames, seconds: f"{frames:.0f} frames")
    main([recipe, "train.run_dir=run"])
    assert " frames\n" in capsys.readouterr().err


def test_the_progress_shows_whether_embeddings_collapse(recipe, capsys):
    main([recipe, "train.run_dir=run"])
    last = read_log("run")[-1]
    shown = f"rank={last['effective_rank']:.1f}, spread={last['pairwise_distance']:.2f}"
    assert shown in capsys.readouterr().err
