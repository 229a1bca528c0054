"""Retrieval sheets over all videos of a split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pairs import embedded, grey_run, grey_video, warped
from PIL import Image

from training import retrieve
from training.data.index import build_index
from training.evaluation import encoders, pictures
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.retrieval import (
    choose_queries,
    nearest_moments,
    retrieval_sheet,
)
from training.recipe.schema import DataConfig


def random_videos(lengths, seed=0):
    rng = np.random.default_rng(seed)
    videos = []
    for number, length in enumerate(lengths):
        x = rng.normal(size=(length, 4)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        record = embedded(str(number), np.zeros(length), action="ab"[number % 2]).record
        videos.append(EmbeddedVideo(record, x))
    return videos


@pytest.mark.parametrize("gap", [0.0, 0.2, 10.0])
def test_nearest_moments_equal_an_explicit_search(gap):
    videos = random_videos([30, 40, 25])
    x = videos[1].embeddings[7]
    expected, blocked = [], set()
    pairs = [
        (v, t, float(y @ x)) for v in (0, 2) for t, y in enumerate(videos[v].embeddings)
    ]  # fmt: skip
    for v, t, similarity in sorted(pairs, key=lambda item: -item[2]):
        if (v, t) not in blocked and len(expected) < 5:
            expected.append((v, t, similarity))
            blocked |= {(v, s) for s in range(60) if abs(s - t) / 25 < gap} | {(v, t)}
    found = nearest_moments(videos, (1, 7), 5, gap)
    assert [(v, t) for v, t, _ in found] == [(v, t) for v, t, _ in expected]
    assert [s for _, _, s in found] == pytest.approx([s for _, _, s in expected])
    if gap == 10.0:  # longer than each video: one frame of each
        assert sorted(v for v, _, _ in found) == [0, 2]
    else:
        assert len(found) == 5


def test_moments_are_apart_in_seconds_of_the_video_not_in_frames():
    slow = embedded("slow", np.full(30, 1.0))
    slow.record.times = np.arange(30) * 0.5  # two frames a second
    query = embedded("query", [1.0])
    assert len(nearest_moments([query, slow], (0, 0), 5, gap=0.5)) == 5
    slow.record.times = np.arange(30) * 0.01
    assert len(nearest_moments([query, slow], (0, 0), 5, gap=0.5)) == 1


def test_queries_of_all_scopes():
    videos = [embedded(a, warped(30, 1.0), action=a) for a in "abc"]
    assert choose_queries(videos, 9) == []
    everywhere = choose_queries(videos, 9, "all")
    assert {v for v, _ in everywhere} == {0, 1, 2}
    assert len(everywhere) == 9
    assert choose_queries(videos[:1], 9, "all") == []


@pytest.fixture
def shown(monkeypatch):
    """The rows that the sheets have, and the options of each sheet."""
    seen = {}

    def sheet(rows, file, **options):
        seen.update(rows=rows, **options)

    monkeypatch.setattr(pictures, "contact_sheet", sheet)
    return seen


def test_borders_are_by_phase_and_action(tmp_path, shown):
    path = grey_video(tmp_path / "v.mp4", np.zeros(3))
    videos = [
        embedded(f"{action}{number}", [0.0, 1.0, 2.0], action=action, path=path)
        for number, action in enumerate("aab")
    ]
    names = {"a": ["x", "y", "z"], "b": ["x", "y", "z"]}
    retrieval_sheet(videos, names, tmp_path / "sheet.png", queries=1, scope="all", gap=0)
    query, *tiles = shown["rows"][0]
    assert query.lines[2] == "a: x"
    borders = {(tile.lines[0], tile.lines[2][2:]): tile.border for tile in tiles}
    assert borders["a1", "a: x"] == pictures.SAME
    assert borders["b2", "b: x"] == pictures.OTHER  # the same number of another action's phase
    assert len(tiles) == 5
    few = {"queries": 1, "scope": "all", "gap": 0, "neighbours": 2}
    retrieval_sheet(videos, names, tmp_path / "sheet.png", **few)
    assert len(shown["rows"][0]) == 1 + 2


def test_retrieve_writes_a_sheet_of_all_videos(tmp_path, monkeypatch, capsys):
    grey_run(monkeypatch)
    encoders._load("run").cfg.data = DataConfig(engine="pyav")
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    entries = {}
    for name in "abc":
        grey_video(folder / f"{name}.mp4", warped(12, 1.0))
        entries[f"{name}.mp4"] = {"action": name, "split": "test"}
    (folder / "labels.json").write_text(json.dumps({"videos": entries}))
    build_index(folder)
    command = ["--run", str(run), "--folder", str(folder)]
    assert retrieve.main(command) == 2
    assert "--scope all searches those of all actions" in capsys.readouterr().err
    assert retrieve.main([*command, "--scope", "all", "--queries", "2"]) == 0
    assert Image.open(run / "retrieval_all.png").width > 500
    assert not (run / "retrieval.png").exists()
    capsys.readouterr()
    for options, said in (
        (["--scope", "all", "--gap", "-1"], "at least 0, got -1.0"),
        (["--scope", "all", "--gap", "nan"], "at least 0, got nan"),
        (["--scope", "all", "--gap", "inf"], "at least 0, got inf"),
        (["--gap", "1"], "--gap works only with --scope all, got --scope others"),
        (["--scope", "videos", "--gap", "1"], "--gap works only with --scope all, got --scope v"),
        (["--scope", "videos", "--no-store"], "--scope videos stores no embeddings"),
    ):
        with pytest.raises(SystemExit) as stop:
            retrieve.main([*command, *options])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_one_video_has_no_neighbours(tmp_path):
    videos = [embedded("alone", warped(9, 1.0))]
    assert retrieval_sheet(videos, {}, tmp_path / "none.png", scope="all") == 0
    assert not (tmp_path / "none.png").exists()
