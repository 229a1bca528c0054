"""Two runs in one page: the same videos, metrics, queries, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from pairs import PHASES, grey_video, warped
from runs import RECIPE

from training import side_by_side
from training.data.index import build_index
from training.evaluation import encoders, plots, two_runs
from training.evaluation.scores import evaluate_embeddings
from training.evaluation.two_runs import better, load_two_runs, metrics_of_both
from training.pages import compare_page
from training.pages.compare_page import configuration_differences
from training.recipe.load import load_config
from training.runs.model import Restored
from training.runs.videos import TRAINING_VIDEOS
from training.support.command import LeftOut, UserError


class Grey(torch.nn.Module):
    """The grey level as an angle, with noise."""

    use_positions, pooled = True, False

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        angle = (frames.float().mean(dim=(2, 3, 4)) - 40) / 180 * torch.pi / 2
        generator = torch.Generator().manual_seed(0)
        angle = angle + self.noise * torch.randn(angle.shape, generator=generator)
        return 3 * torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs a and b on the same folder; b is the noisy one. Call it with overrides of b."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    entries = {}
    for number, name in enumerate(("t0", "t1", "t2", "v0", "v1")):
        position = warped(24 + 2 * number, (0.6, 1.0, 1.6)[number % 3])
        grey_video(folder / f"{name}.mp4", position)
        cuts = [int((position < phase).sum()) for phase in range(1, PHASES)]
        split = "train" if name[0] == "t" else "test"
        entries[f"{name}.mp4"] = {"split": split, "boundaries": cuts, "view": name}
    content = {"classes": {"all": ["x", "y", "z"]}, "videos": entries}
    (folder / "labels.json").write_text(json.dumps(content))
    build_index(folder)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    configs = {}

    def load(run, *, untrained, checkpoint):
        name = str(run)
        return Restored(Grey({"a": 0.0, "b": 0.3}[name]), configs[name], "step_00000012", 12)

    def make(*overrides):
        for name, more in (("a", []), ("b", ["optim.lr=0.5", *overrides])):
            values = [f"data.folder={folder}", f"train.run_dir={name}", *more]
            configs[name] = load_config("tiny.yaml", values)
            (tmp_path / name).mkdir(exist_ok=True)
        return ["a", "b"]

    monkeypatch.setattr(encoders, "_load", load)
    return make


def test_the_page_has_both_runs(runs, tmp_path, capsys):
    both = runs()
    for name, value in (("a", 2.0), ("b", 3.0)):
        log = [json.dumps({"step": step, "loss": value / (1 + step)}) for step in range(5)]
        (tmp_path / name / "log.jsonl").write_text("\n".join(log))
    line = {"step": 3, "metrics": {"classification": 0.5}, "time_index": {"classification": 0.4}}
    (tmp_path / "b" / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    assert side_by_side.main([*both, "--out", "out/page.html"]) == 0
    page = (tmp_path / "out" / "page.html").read_text()
    assert "written: out/page.html" in capsys.readouterr().out
    assert [part.partition("<")[0] for part in page.split("<h2>")[1:]] == [
        "Metrics",
        "Phases over time",
        "Most similar frames",
        "Training",
        "Configuration",
    ]
    assert page.count("data:image/png") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert "Both networks on the same 2 test videos" in page
    assert "fitted to the same 3 training videos" in page
    assert "Only B: b was evaluated during training." in page
    rows = metrics_of_both(load_two_runs(both, left_out=LeftOut()))
    a, b = rows["A"]["alignment_error"], rows["B"]["alignment_error"]
    assert a < b
    cell = f'(phases)</td><td class="best">{a:.3f}</td><td>{b:.3f}</td><td>+{b - a:.3f}</td>'
    assert cell in page.replace("\n", "")
    assert "<th>optim.lr</th><td>0.001</td><td>0.5</td>" in page
    assert "<th>train.run_dir</th>" not in page


def test_the_curves_have_the_metric_that_a_run_keeps_the_best_by(runs, tmp_path, monkeypatch):
    both = runs()
    for name in both:
        line = {"step": 3, "metrics": {"classification": 0.5, "kendalls_tau": -0.4}}
        (tmp_path / name / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    drawn = []
    monkeypatch.setattr(two_runs, "curves_of_both", lambda curves, file: drawn.append([*curves]))
    monkeypatch.setattr(compare_page.html, "picture", lambda file, alt: "")
    found = load_two_runs(both, left_out=LeftOut())
    compare_page._curves(found, tmp_path)
    best = {"step": 3, "metric": "kendalls_tau", "value": -0.4, "split": "test"}
    (tmp_path / "b" / "best.json").write_text(json.dumps(best))
    compare_page._curves(found, tmp_path)
    assert drawn == [["classification"], ["classification", "Kendall's tau"]]


def test_the_panels_of_both_runs_have_the_same_axes(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plots, "tidy", made.append)
    logs = {"A: a": [(0, 9.0), (5, 8.0)], "B: b": [(0, 2.0), (50, 1.0)]}
    for same_scale in (True, False):
        made.clear()
        two_runs.losses_of_both(logs, tmp_path / "losses.png", same_scale=same_scale)
        a, b = made
        assert a.get_xlim() == b.get_xlim()
        assert (a.get_ylim() == b.get_ylim()) == same_scale
    made.clear()
    curves = {"Kendall's tau": {"A: a": [(0, -0.4)], "B: b": [(0, 0.5)]}}
    two_runs.curves_of_both(curves, tmp_path / "curves.png")
    assert made[0].get_ylim() == pytest.approx((-0.44, 0.55))


def test_metrics_are_those_of_evaluate_on_the_same_videos(runs):
    found = load_two_runs(runs(), left_out=LeftOut())
    rows = metrics_of_both(found, protocol="lav", stride=2)
    options = {"protocol": "lav", "stride": 2}
    for run, letter in ((found.a, "A"), (found.b, "B")):
        expected = evaluate_embeddings(run.train, run.test, found.index.classes, **options)
        np.testing.assert_equal(rows[letter], expected["metrics"])
    assert rows["A"] != rows["B"]
    assert rows["time index only"]["kendalls_tau"] == pytest.approx(1.0, abs=0.1)


def test_videos_of_one_run_only_are_left_out_and_counted(runs):
    found = load_two_runs(runs("data.where.view=[t0,t1,v0]"), left_out=LeftOut())
    assert [v.record.id for v in found.a.test] == [v.record.id for v in found.b.test] == ["v0.mp4"]
    assert [v.record.id for v in found.b.train] == ["t0.mp4", "t1.mp4"]
    assert found.remarks == (
        "1 of the 2 test videos of A are not among the other run's videos and are left out.",
        "1 of the 3 train videos of A are not among the other run's videos and are left out.",
    )


def test_test_videos_that_a_run_was_trained_on_are_counted(runs, tmp_path):
    both = runs()
    (*_, last) = load_two_runs(both, left_out=LeftOut()).a.test
    known = {last.record.id: {"path": last.record.path, "frames": last.record.frames}}
    (tmp_path / "b" / TRAINING_VIDEOS).write_text(json.dumps({"videos": known}))
    assert load_two_runs(both, left_out=LeftOut()).remarks == (
        "B was trained on 1 of the 2 test videos: its figures on them say nothing about new "
        "videos.",
    )


def test_an_unreadable_video_is_in_neither_run(runs, tmp_path, capsys):
    both = runs()
    (tmp_path / "videos" / "v0.mp4").write_bytes(b"cut off")
    left_out = LeftOut()
    # The index is older than the file: the check of stamps would refuse the folder first.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_runs, "open_index", lambda *a: _unchecked(*a))
        found = load_two_runs(both, left_out=left_out)
    assert list(left_out.videos) == ["v0.mp4"]
    assert [v.record.id for v in found.a.test] == [v.record.id for v in found.b.test] == ["v1.mp4"]


def _unchecked(cfg, folder):
    from training.data.selection import open_index

    return open_index(cfg, folder, check=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.folder=elsewhere"], r"folder is .*videos in the first and .*elsewhere.*--folder"),
        (["data.test_split=val"], r"the test split is test in the first and val.*--split"),
        (["data.where.view=[t0,v2]"], "v2"),
        (["data.where.view=t0"], "no video"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared(runs, overrides, message):
    with pytest.raises(UserError, match=message):
        load_two_runs(runs(*overrides), left_out=LeftOut())


def test_options_settle_what_differs(runs, tmp_path):
    both = runs("data.folder=elsewhere", "data.test_split=val")
    found = load_two_runs(both, folder=tmp_path / "videos", split="test", left_out=LeftOut())
    assert len(found.b.test) == 2


def test_bad_requests_are_one_line(runs, capsys):
    runs()
    assert side_by_side.main(["a", "./a"]) == 2
    assert "are the same run" in capsys.readouterr().err
    for bad in (["--out", "page.pdf"], ["--queries", "0"], ["--stride", "0"]):
        with pytest.raises(SystemExit):
            side_by_side.main(["a", "b", *bad])


def test_which_is_better_depends_on_the_metric():
    assert better("classification", 0.5, 0.6) == "B"
    assert better("alignment_error", 0.5, 0.6) == "A"
    assert better("event_error_dtw", 2.0, 1.0) == "B"
    assert better("map_at_10 ego to exo", 0.5, 0.4) == "A"
    assert better("ap_at_5", 0.5, 0.5) == better("ap_at_5", math.nan, 0.5) == ""


def test_configuration_differences_are_by_value(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    a, b = (
        load_config(tmp_path / "tiny.yaml", [f"train.run_dir={name}", *more])
        for name, more in (("a", []), ("b", ["data.action=swing"]))
    )
    assert configuration_differences(a, b) == [("data.action", "null", "swing")]
    assert configuration_differences(a, a) == []
