"""Alignment errors by true time, on windows of synchronised videos."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_report import grey_model

from fastseq.video import write_video
from training import evaluate
from training.data.index import VideoRecord, build_index
from training.evaluation import embed, encoders, synchronised
from training.evaluation.baselines import time_index_embedding
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.encoders import Weights
from training.evaluation.synchronised import evaluate_synchronised, pair_errors, windows
from training.pages.result_section import result_section
from training.recipe.schema import DataConfig
from training.runs.model import Restored


def camera(name, frames=100, *, fps=30.0, offset=0, group="trial 1", split="test", gaps=()):
    sync = None if group is None else (group, offset)
    return VideoRecord(name, name, frames, fps, 64, 64, split=split, gaps=gaps, sync=sync)


# --- windows ------------------------------------------------------------------------------------


def slow_windows(a, b, share):
    """(frames of a's window, frames of b's, pairs of frames of one instant), by loops over
    instants.
    """

    def sound(v):
        return [k for k in range(v.frames) if not any(i <= k < j for i, j in v.gaps)]

    def shown(v, w):
        """Frame of v -> the nearest frame of w in time, if it is at most half a frame of w away."""
        out = {}
        for k in sound(v):
            instant = Fraction(k + v.sync[1]) / Fraction(v.fps)
            apart = {m: abs(Fraction(m + w.sync[1]) / Fraction(w.fps) - instant) for m in sound(w)}
            best = min(apart, key=lambda m: apart[m])  # the earlier of two
            if apart[best] <= Fraction(1, 2) / Fraction(w.fps):
                out[k] = best
        return out

    there, back = shown(a, b), list(shown(b, a))
    first = list(there)[: round(share * len(there))]
    last = back[len(back) - round(share * len(back)) :]
    return first, last, [(k, there[k]) for k in first if there[k] in last]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (camera("a"), camera("b")),
        (camera("a", 40, offset=7), camera("b", 60, offset=-3)),
        (camera("a", 50, fps=25.0, offset=2), camera("b", 70, fps=60.0, offset=1)),
        (camera("a", 70, fps=60.0, offset=4), camera("b", 33, fps=30.0)),
        (camera("a", 40, gaps=((5, 9), (30, 31))), camera("b", 44, offset=2, gaps=((20, 22),))),
    ],
)
@pytest.mark.parametrize("share", [0.7, 0.55])
def test_windows_equal_loops_over_instants(a, b, share):
    first, last, pairs = slow_windows(a, b, share)
    cut = windows(a, b, share)
    in_a = EmbeddedVideo(cut.a, None).frames
    assert in_a.tolist() == first
    assert EmbeddedVideo(cut.b, None).frames.tolist() == last
    assert list(zip(in_a[cut.rows].tolist(), cut.true.tolist(), strict=True)) == pairs
    assert pairs


def test_windows_of_100_frames():
    cut = windows(camera("a"), camera("b"), 0.7)
    assert EmbeddedVideo(cut.a, None).frames.tolist() == list(range(70))
    assert EmbeddedVideo(cut.b, None).frames.tolist() == list(range(30, 100))
    assert cut.true.tolist() == list(range(30, 70))


def test_videos_without_a_common_instant():
    cut = windows(camera("a", 20), camera("b", 20, offset=20), 0.7)
    assert len(cut.true) == 0


# --- errors -------------------------------------------------------------------------------------


def test_errors_by_hand():
    # Windows of 10 frames at 0.7: frames 0 to 6 and 3 to 9; frames 3 to 6 are in both.
    a, b = camera("a", 10, fps=10.0), camera("b", 10, fps=10.0)
    cut = windows(a, b, 0.7)
    angle = np.linspace(0, 1.2, 10)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    shifted = np.roll(x, 1, axis=0)  # b's frame k looks like a's frame k - 1
    errors = pair_errors(EmbeddedVideo(cut.a, x[:7]), EmbeddedVideo(cut.b, shifted[3:]), cut)
    assert errors["sync_error"] == pytest.approx(1.0)
    assert errors["sync_error_seconds"] == pytest.approx(0.1)
    uneven = replace(cut.b, times=np.arange(10) ** 2 / 10)  # 0.7, 0.9, 1.1 and 1.3 s between frames
    later = pair_errors(EmbeddedVideo(cut.a, x[:7]), EmbeddedVideo(uneven, shifted[3:]), cut)
    assert later["sync_error_seconds"] == pytest.approx(1.0)
    # a's frame 0 has to match b's frame 3, and a's frame 6 b's frame 9, which looks like 8. The
    # cheapest path waits at both ends and is as accurate as the nearest frame in between.
    assert 1.0 <= errors["sync_error_dtw"] < 2.0


def test_open_warping_counts_the_frames_outside_its_path():
    a, b = camera("a", 40), camera("b", 40)
    cut = windows(a, b, 0.75)  # frames 0 to 29 and 10 to 39
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 64))
    x[25:30] = rng.normal(size=(5, 64))  # b does not show what a shows there
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    y = x.copy()
    y[25:] = rng.normal(size=(15, 64))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    errors = pair_errors(EmbeddedVideo(cut.a, x[:30]), EmbeddedVideo(cut.b, y[10:]), cut)
    assert errors["sync_error_open"] < 1
    assert 0.7 <= errors["sync_matched_open"] <= 1
    same = np.ones((30, 4), np.float32) / 2
    errors = pair_errors(EmbeddedVideo(cut.a, same), EmbeddedVideo(cut.b, same), cut)
    assert errors["sync_matched_open"] == 0
    assert math.isnan(errors["sync_error_open"])


# --- the whole protocol -------------------------------------------------------------------------


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.fixture
def cameras(monkeypatch, tmp_path):
    """Four cameras of one trial, the last one for testing; fake encoders.

    "trained" returns the instant, "untrained" the relative position of the frame in its input.
    """
    records = [camera(f"{n}.mp4", split="test" if n == 4 else "train") for n in range(1, 5)]
    sets = {"class_set": "", "run_class_set": ""}
    index = SimpleNamespace(folders=(tmp_path,), videos=records, bad=[], **sets)
    instants = torch.from_numpy(time_index_embedding(100))

    def clock(features):
        return torch.from_numpy(time_index_embedding(features.shape[1]))[None]

    encoders = {
        "untrained": SimpleNamespace(embed=clock),
        "trained": SimpleNamespace(embed=unit, weights=Weights("step_00000100", 100, {})),
    }
    cfg = SimpleNamespace(
        data=SimpleNamespace(test_split="test", folder=str(tmp_path)),
        model=SimpleNamespace(backbone_share=0),
    )

    def features_each(encoders, records, cfg, left_out, *, progress):
        for record in records:
            if record in spoilt:
                left_out.add(record.id, "broken")
                continue
            yield record, dict.fromkeys(encoders, instants[: record.frames][None])

    spoilt = []
    monkeypatch.setattr(synchronised, "load_compared_encoders", lambda *_, **__: (encoders, cfg))
    monkeypatch.setattr(synchronised, "open_index", lambda cfg, folder, **_: index)
    monkeypatch.setattr(embed, "features_each", features_each)
    return SimpleNamespace(index=index, spoilt=spoilt, records=records)


def test_the_clock_is_off_by_exactly_what_was_cut(cameras):
    for number, record in enumerate(cameras.records):  # all 12 ordered pairs
        cameras.index.videos[number] = camera(record.id)
    result = evaluate_synchronised("run", progress=False)
    for name in ("time index only", "untrained"):  # the position depends only on the window
        values = result["rows"][name]["metrics"]
        for key in ("sync_error", "sync_error_dtw", "sync_error_open"):
            assert values[key] == 30.0
            assert values[f"{key}_seconds"] == 1.0
        assert values["sync_matched_open"] > 0.95
    pairs = result["rows"]["time index only"]["pairs"]
    assert len(pairs) == 12
    assert {pair["instants"] for pair in pairs} == {40}
    trained = result["rows"]["trained"]["metrics"]
    assert trained["sync_error"] == 0.0
    assert trained["sync_error_open"] == 0.0
    assert trained["sync_matched_open"] > 0.95
    narrow = evaluate_synchronised("run", window=0.9, progress=False)
    assert narrow["rows"]["time index only"]["metrics"]["sync_error"] == 10.0


def test_every_pair_has_a_test_video(cameras, capsys):
    result = evaluate_synchronised("run", progress=False)
    pairs = [(pair["a"], pair["b"]) for pair in result["rows"]["trained"]["pairs"]]
    others = ["1.mp4", "2.mp4", "3.mp4"]
    assert sorted(pairs) == sorted(
        [("4.mp4", one) for one in others] + [(one, "4.mp4") for one in others]
    )
    assert result["videos"] == {"train": 3, "test": 1}
    assert "(6 pairs;" in result["definitions"]["protocol"]
    assert result["definitions"].keys() >= result["rows"]["trained"]["metrics"].keys()
    assert result["row_definitions"].keys() == {"time index only", "untrained", "trained"}


def test_unreadable_videos_and_pairs_without_an_instant_are_counted(cameras, capsys):
    cameras.spoilt.append(cameras.records[0])
    cameras.records[1] = camera("2.mp4", split="train", offset=1000)
    cameras.index.videos[:] = cameras.records
    result = evaluate_synchronised("run", progress=False)
    assert len(result["rows"]["trained"]["pairs"]) == 2
    assert result["left_out"] == {"1.mp4": "broken"}
    reason = "pairs of videos without an instant in both windows"
    assert result["rows"]["trained"]["left_out"] == {reason: 2}
    cameras.spoilt[:] = cameras.records
    with pytest.raises(ValueError, match="could be compared: broken; broken"):
        evaluate_synchronised("run", progress=False)
    assert "left out 1.mp4" in capsys.readouterr().err


def test_without_synchronised_test_videos_the_labels_file_is_explained(cameras):
    cameras.index.videos[3] = camera("4.mp4", group=None)
    with pytest.raises(ValueError, match=r"in the split 'test'.*the groups 'trial 1' \(3\)"):
        evaluate_synchronised("run", progress=False)
    cameras.index.videos[:] = [camera(str(n), group=None) for n in range(2)]
    with pytest.raises(ValueError, match=r'has none\. Write "sync": \{"group".*training\.prepare'):
        evaluate_synchronised("run", progress=False)
    for window in (0.5, 1.0):
        with pytest.raises(ValueError, match=f"window is {window:g}; expected a share above 0.5"):
            evaluate_synchronised("run", window=window, progress=False)


def test_the_command_prints_and_writes_it(cameras, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    assert evaluate.main([str(run), "--protocol", "sync", "--window", "0.8"]) == 0
    printed = capsys.readouterr().out
    assert "by open DTW, frames" in printed
    assert "20.000" in printed
    assert "first 80 % of the frames" in printed
    result = json.loads((run / "evaluation.json").read_text())
    assert result["rows"]["trained"]["metrics"]["sync_error"] == 0
    table = "\n".join(result_section(result))
    assert "protocol sync" in table
    assert "Better than the time index alone: error by nearest frame 0.000 against 20.000" in table
    assert evaluate.main([str(run), "--protocol", "sync", "--stride", "2"]) == 2
    assert "--stride applies to frames" in capsys.readouterr().err
    assert evaluate.main([str(run), "--window", "0.8"]) == 2
    assert "--window applies to windows" in capsys.readouterr().err


def test_videos_with_sync_in_the_labels_file(tmp_path, monkeypatch):
    # Grey levels show the instant; b begins 4 frames later and does not differ otherwise.
    entries = {}
    for name, offset in (("a", 0), ("b", 4)):
        levels = 40 + 6 * (np.arange(30) + offset)
        frames = (np.full((32, 32, 3), level, np.uint8) for level in levels)
        write_video(tmp_path / f"{name}.mp4", frames, 25.0)
        entries[f"{name}.mp4"] = {"split": "test", "sync": {"group": "one", "offset": offset}}
    (tmp_path / "labels.json").write_text(json.dumps({"videos": entries}))
    build_index(tmp_path)
    cfg = SimpleNamespace(
        data=DataConfig(folder=str(tmp_path), engine="pyav"),
        augmentation=SimpleNamespace(size=32),
        model=OmegaConf.create({"weights": None, "backbone_share": 0}),
    )
    restored = Restored(grey_model(0.0), cfg, "step_00000100", 100)
    monkeypatch.setattr(encoders, "_load", lambda run, **_: restored)
    result = evaluate_synchronised("run", window=0.75, progress=False)
    # 26 common instants: windows of round(19.5) = 20, so the clock is off by 6.
    assert result["rows"]["time index only"]["metrics"]["sync_error"] == 6.0
    assert result["rows"]["trained, positions off"]["metrics"]["sync_error"] == 0.0
    assert result["groups"] == ["one"]
    assert [pair["instants"] for pair in result["rows"]["trained"]["pairs"]] == [14, 14]
