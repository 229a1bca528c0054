"""Open alignment: where it begins and ends, its pictures, its command, and real swings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from pairs import embedded, grey_run, grey_video, warped

from fastseq.video import probe, read_frames
from training import align as align_command
from training.evaluation.alignment import (
    EARNING_SHARE,
    OUTSIDE,
    _without_still_ends,
    align,
    align_open,
    centred,
    write_aligned_video,
)
from training.evaluation.embed import EmbeddedVideo
from training.evaluation.plots import similarity_map
from training.support.command import UserError

# a shows phases 0 to 2, b phases 1 to 3: both have those from 1 to 2.
EARLY, LATE = warped(60, 1.5) * 2 / 3, 1 + warped(45, 0.7) * 2 / 3


def test_open_alignment_keeps_to_what_both_videos_show():
    a, b = embedded("a", EARLY), embedded("b", LATE)
    found = align_open(a, b, threshold=0.999)
    inside = found.matched != OUTSIDE
    np.testing.assert_array_equal(np.flatnonzero(inside), np.arange(found.i[0], found.i[-1] + 1))
    assert EARLY[found.i[0]] == pytest.approx(1.0, abs=0.1)
    assert LATE[found.j[-1]] == pytest.approx(2.0, abs=0.1)
    assert np.abs(LATE[found.matched[inside]] - EARLY[inside]).max() < 0.15
    closed = align(a, b)
    assert np.abs(LATE[closed.matched] - EARLY).mean() > 0.3
    assert (closed.threshold, closed.score) == (None, None)


def test_score_is_the_sum_of_what_the_pairs_earn():
    a, b = embedded("a", EARLY), embedded("b", LATE)
    found = align_open(a, b)
    similarity = a.embeddings @ b.embeddings.T
    assert (similarity > found.threshold).mean() == pytest.approx(EARNING_SHARE, abs=1e-3)
    earned = similarity[found.i, found.j].astype(float) - found.threshold
    assert found.score == pytest.approx(earned.sum(), rel=1e-6)
    assert found.similarity == pytest.approx(similarity[found.i, found.j].mean(), rel=1e-5)


def test_a_video_that_stands_still_at_an_end_has_ended():
    """Of the frames that all go with one, at either end, only the innermost is kept."""
    hold = np.concatenate([np.full(8, 0.5), np.linspace(0.5, 2.5, 21), np.full(6, 2.5)])
    once = np.linspace(0.5, 2.5, 21)
    for a, b in ((hold, once), (once, hold)):
        found = align_open(embedded("a", a), embedded("b", b), threshold=0.995)
        rows, still = (found.i, found.j) if len(a) > len(b) else (found.j, found.i)
        assert 6 <= rows[0] <= 9
        assert 27 <= rows[-1] <= 30
        assert still[0] <= 1
        assert still[-1] >= 19
    # One frame against a video of its kind: nothing moves, all of it is kept.
    found = align_open(embedded("a", [1.0]), embedded("b", [2.9, 1.0, 1.0, 0.1]), threshold=0.9)
    assert found.j.tolist() == [1, 2]
    # Down, then to the right: the corner.
    path = np.array([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
    assert _without_still_ends(path).tolist() == [[2, 0]]


def test_nothing_above_the_threshold():
    a, b = embedded("a.mp4", [0.0, 0.5]), embedded("b.mp4", [2.5, 3.0])
    nothing = r"no frame of a.mp4 and b.mp4 .* above 0\.9000; the highest is 0\.5"
    with pytest.raises(UserError, match=nothing):
        align_open(a, b, threshold=0.9)


def test_centred_takes_off_what_all_frames_share():
    rng = np.random.default_rng(0)
    moves, place = rng.standard_normal((40, 32)), 20 * rng.standard_normal((2, 32))
    unit = [(moves + where) / np.linalg.norm(moves + where, axis=1)[:, None] for where in place]
    a, b = (
        EmbeddedVideo(embedded(name, np.zeros(40)).record, rows.astype(np.float32))
        for name, rows in zip("ab", unit, strict=True)
    )

    def found(a, b):
        return ((a.embeddings @ b.embeddings.T).argmax(axis=1) == np.arange(40)).mean()

    assert found(a, b) < 0.5
    assert found(centred(a), centred(b)) == 1.0
    np.testing.assert_allclose(np.linalg.norm(centred(a).embeddings, axis=1), 1, atol=1e-6)
    assert centred(a).embeddings.dtype == np.float32
    assert not centred(embedded("still", np.full(5, 1.3))).embeddings.any()


def test_video_is_empty_where_nothing_matches(tmp_path):
    a = embedded("a", EARLY, path=grey_video(tmp_path / "a.mp4", EARLY))
    b = embedded("b", LATE, path=grey_video(tmp_path / "b.mp4", LATE))
    found = align_open(a, b, threshold=0.999)
    write_aligned_video(a, b, found, tmp_path / "out.mp4", height=96)
    shown = read_frames(tmp_path / "out.mp4").numpy().astype(float)
    panel = (shown.shape[2] - 8) // 3
    middle = shown[:, 40:136, 8 + panel : 2 * panel - 8].std(axis=(1, 2)).mean(axis=1)
    # A picture between black bars, or one flat grey.
    np.testing.assert_array_equal(middle < 5, found.matched == OUTSIDE)
    left = shown[:, 40:136, 8 : panel - 8].std(axis=(1, 2)).mean(axis=1)
    assert (left > 5).all()


@pytest.fixture
def videos(tmp_path, monkeypatch):
    grey_run(monkeypatch)
    monkeypatch.chdir(tmp_path)
    grey_video(tmp_path / "a.mp4", EARLY)
    grey_video(tmp_path / "b.mp4", LATE)
    return ["a.mp4", "b.mp4", "--run", "run", "--out", "out"]


def test_command_says_where_it_begins_and_ends(videos, tmp_path, capsys):
    assert align_command.main([*videos, "--open", "--threshold", "0.999"]) == 0
    score, first, second, mean, written = capsys.readouterr().out.splitlines()
    assert score.startswith("score ")
    assert score.endswith("pairs of frames of their similarity less 0.9990")
    for line, name, frames, phases, (begin, end) in [
        (first, "a.mp4", 60, EARLY, (1.0, 2.0)),
        (second, "b.mp4", 45, LATE, (1.0, 2.0)),
    ]:
        words = line.replace(",", "").split()
        assert words[0] == f"{name}:"
        assert f" of {frames}, " in line
        start, stop = int(words[2]), int(words[4])
        assert phases[start] == pytest.approx(begin, abs=0.2)
        assert phases[stop] == pytest.approx(end, abs=0.2)
        assert line.endswith(f"{start / 25:.2f} s to {stop / 25:.2f} s")
    assert mean.startswith("mean cosine similarity along the path: ")
    assert written.startswith("written: ")
    out = tmp_path / "out"
    assert probe(out / "aligned.mp4").frames == 60
    content = json.loads((out / "alignment.json").read_text())
    assert content["threshold"] == 0.999
    assert score.startswith(f"score {content['score']:.4g}: the sum over {len(content['path'])} ")
    page = (out / "alignment.html").read_text()
    for line in (score, first, second, mean):
        assert f"<li>{line}</li>" in page
    data = json.loads(page.split('id="player-data">')[1].split("</script>")[0])
    matched = np.array(data["pairs"]["0,1"]["matched"])
    assert np.flatnonzero(matched != OUTSIDE).tolist() == [m["frame_a"] for m in content["matches"]]
    assert matched[matched != OUTSIDE].tolist() == [m["frame_b"] for m in content["matches"]]
    assert OUTSIDE in data["pairs"]["1,0"]["matched"]
    assert (tmp_path / "out" / "similarity.png").read_bytes().startswith(b"\x89PNG")


def test_map_marks_the_ends(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    a, b = embedded("a", EARLY, phases=False), embedded("b", LATE, phases=False)
    found = align_open(a, b, threshold=0.999)
    for ends in (False, True):
        similarity_map(a, b, (found.i, found.j), tmp_path / "map.png", ends=ends)
    named = [[t.get_text() for t in figure.axes[0].get_legend().get_texts()] for figure in drawn]
    (i, _, k), (j, _, m) = found.i[[0, 1, -1]], found.j[[0, 1, -1]]
    line = "alignment (DTW)"
    assert named == [[line], [line, f"begins at {i} | {j}", f"ends at {k} | {m}"]]
    marks = [line for line in drawn[1].axes[0].lines if line.get_marker() in ("o", "s")]
    assert [mark.get_xydata().tolist() for mark in marks] == [[[j, i]], [[m, k]]]


def test_centre_and_default_threshold(videos, capsys):
    assert align_command.main([*videos, "--centre"]) == 0
    closed = capsys.readouterr().out
    assert "score" not in closed
    assert float(closed.split("path: ")[1].split()[0]) < 0.999
    assert align_command.main([*videos, "--open"]) == 0
    assert "similarity less 0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--threshold", "0.5"], "--threshold needs --open"),
        (["--open", "--threshold", "1"], "at least -1 and below 1, got 1"),
        (["--open", "--threshold", "nan"], "at least -1 and below 1, got nan"),
        (["--open", "--threshold", "much"], "invalid float value"),
    ],
)
def test_wrong_combinations(options, error, capsys):
    with pytest.raises(SystemExit) as ended:
        align_command.main(["a.mp4", "b.mp4", "--run", "run", *options])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_nothing_above_the_threshold_is_one_line(videos, tmp_path, capsys):
    grey_video(tmp_path / "b.mp4", np.full(9, 3.0))
    grey_video(tmp_path / "a.mp4", np.full(9, 0.0))
    assert align_command.main([*videos, "--open", "--threshold", "0.9"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert error.startswith("error: no frame of a.mp4 and b.mp4")


# --- real swings --------------------------------------------------------------------------------


def moving(path, begin, end) -> EmbeddedVideo:
    """Where a clip moves: 16 x 16 grey differences of the frames 3 before and 3 after."""
    grey = read_frames(path, size=16).numpy().mean(-1)
    moved = np.abs(grey[6:] - grey[:-6])
    moved = moved[np.clip(np.arange(len(grey)) - 3, 0, len(moved) - 1)].reshape(len(grey), -1)
    moved = moved[begin:end] - moved[begin:end].mean(axis=1, keepdims=True)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    video = embedded(path.name, np.zeros(end - begin))
    return centred(EmbeddedVideo(video.record, moved.astype(np.float32)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("golfdb_test_video.mp4", "hsway_CM_range.mp4"),
        ("wayne_swing4.mp4", "wayne_swing3.mp4"),
    ],
)
def test_swings_that_begin_and_end_differently(first, second, real_clips):
    """The first begins in the backswing, the second ends after the impact; other golfers, other
    places, other speeds. The labels are good to 2 frames at the impact and 6 at the top."""
    folder = real_clips / "golf_swing"
    labels = json.loads((folder / "labels.json").read_text())["videos"]
    a, b = labels[first], labels[second]
    begin = (a["takeaway"] + 2 * a["top"]) // 3
    end = (2 * b["impact"] + b["finish"]) // 3
    videos = moving(folder / first, begin, a["n"]), moving(folder / second, 0, end)
    off = {}
    for how in (align, align_open):
        matched = how(*videos).matched
        off[how] = [abs(matched[a[event] - begin] - b[event]) for event in ("top", "impact")]
        print(first, second, how.__name__, "top, impact off by", *off[how], "frames")
    assert min(off[align]) > 50
    assert max(off[align_open]) <= 12
