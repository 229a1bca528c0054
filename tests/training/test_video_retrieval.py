"""Retrieval of whole videos: ranks and recalls, the choice of queries, the sheet, the report."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pairs import grey_video
from PIL import Image
from runs import RECIPE

from training import evaluate, report, retrieve, train
from training.data.index import build_index
from training.evaluation import pictures
from training.evaluation.video_level import video_scores
from training.evaluation.video_ranking import KS, ranked, recalls
from training.evaluation.video_retrieval import (
    VideoRetrieval,
    choose_video_queries,
    video_sheet,
    video_tiles,
)


def found(queries, train_actions, order, path=""):
    """A retrieval: ``queries`` are actions, ``order`` the rows of training videos."""

    def records(actions, split):
        made = {"path": str(path), "frames": 30, "split": split}
        return [SimpleNamespace(id=f"{split}{n}", action=a, **made) for n, a in enumerate(actions)]

    order = np.array(order)
    similarity = np.linspace(1, 0, order.shape[1])[None].repeat(len(order), 0)
    return VideoRetrieval(
        records(queries, "test"), records(train_actions, "train"), order, similarity
    )


def test_ranks_and_recalls_equal_loops_over_all_pairs():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(23, 4)), rng.normal(size=(9, 4))
    train[3] = 2 * train[11]  # equal similarities: the first one is first
    test[2] = 0
    labels = [rng.integers(0, 4, len(rows)).astype(str) for rows in (train, test)]

    def cosine(x, y):
        lengths = (x @ x) ** 0.5 * (y @ y) ** 0.5
        return x @ y / lengths if lengths else 0.0

    order, similarity = ranked(test, train)
    expected = dict.fromkeys(KS, 0)
    for row, query in enumerate(test):
        values = [cosine(query, candidate) for candidate in train]
        by_hand = sorted(range(len(train)), key=lambda c: (-round(values[c], 12), c))
        assert order[row].tolist() == by_hand
        assert similarity[row] == pytest.approx([values[c] for c in by_hand])
        for k in KS:
            expected[k] += any(labels[0][c] == labels[1][row] for c in by_hand[:k])
    values = recalls(labels[0][order] == labels[1][:, None])
    assert np.isnan(values["recall_at_50"])  # there are only 23
    for k in KS[:-1]:
        assert values[f"recall_at_{k}"] == expected[k] / len(test)
    scores = video_scores(train, labels[0], test, labels[1])
    scores.pop("linear_svm")
    assert scores == pytest.approx(values, nan_ok=True)  # evaluate's


def test_queries_are_successes_and_failures_of_all_actions():
    nearest = [[0], [1], [0], [0], [1], [1], [0], [1]]  # action a, b
    one = found("aaaabbbb", "ab", nearest)
    hits = [True, False, True, True, True, True, False, True]
    assert one.hits[:, 0].tolist() == hits
    assert choose_video_queries(one, 4) == [0, 7, 1, 6]  # two of each
    assert choose_video_queries(one, 6) == [0, 3, 4, 7, 1, 6]  # there are only two failures
    assert choose_video_queries(one, 1) == [0]
    assert sorted(choose_video_queries(one, 20)) == list(range(8))
    assert choose_video_queries(found("aa", "ab", [[1], [1]]), 1) == [0]  # no success
    assert one.by_action == {"a": (0.75, 4), "b": (0.75, 4)}
    assert one.sentence().startswith("R@1 0.750, R@5 -, R@10 -")


def test_tiles_have_the_border_of_the_action(tmp_path, monkeypatch):
    path = grey_video(tmp_path / "v.mp4", np.linspace(0, 3, 30, endpoint=False))
    one = found("ab", "aab", [[2, 1, 0], [2, 1, 0]], path)
    query, *tiles = video_tiles(one, 0, 2)
    assert query.lines == ["test0", "a"]
    assert [tile.lines for tile in tiles] == [
        ["train2", "✗ b", "cosine 1.000"],
        ["train1", "✓ a", "cosine 0.500"],
    ]
    assert [tile.border for tile in tiles] == [pictures.OTHER, pictures.SAME]
    assert query.frame.shape[1] == 3 * 160 + 2 * 6  # three frames and white between them
    levels = [query.frame[50, x].mean() for x in (80, 246, 412)]
    assert levels == pytest.approx([40 + 180 * place for place in (1 / 6, 1 / 2, 5 / 6)], abs=3)
    same = found("aa", "a", [[0], [0]], path)
    assert video_tiles(same, 0, 1)[1].border == pictures.NEUTRAL  # nothing can be wrong

    seen = {}
    monkeypatch.setattr(pictures, "contact_sheet", lambda rows, file, **look: seen.update(look))
    assert video_sheet(one, "sheet.png", queries=2) == 2
    assert [title.split(":")[0] for title in seen["titles"]] == ["success", "failure"]
    assert "R@1 0.500" in seen["footer"][0]


def test_the_text_below_a_sheet_is_whole(tmp_path):
    tile = pictures.Tile(np.zeros((40, 60, 3), np.uint8), ["one"])
    pictures.contact_sheet([[tile] * 3], tmp_path / "without.png")
    pictures.contact_sheet([[tile] * 3], tmp_path / "with.png", footer=["word " * 60])
    plain, longer = (Image.open(tmp_path / f"{name}.png") for name in ("without", "with"))
    assert longer.width == plain.width
    assert longer.height > plain.height + 3 * 15
    font = pictures.typeface(12)
    lines = pictures.wrapped("some words and aVeryLongWordWithoutAnySpace end", font, 90)
    assert " ".join(lines) == "some words and aVeryLongWordWithoutAnySpace end"
    assert all(font.getlength(line) <= 90 for line in lines if " " in line)


def test_a_large_sheet_has_fewer_colours(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    pictures.save_png(picture, tmp_path / "small.png")
    monkeypatch.setattr(pictures, "LARGEST", 20_000)
    pictures.save_png(picture, tmp_path / "large.png")
    small, large = (tmp_path / f"{name}.png" for name in ("small", "large"))
    assert np.array_equal(Image.open(small), picture)
    assert Image.open(large).mode == "P"
    assert large.stat().st_size < 20_000 < small.stat().st_size
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.png", "small.png"]


@pytest.fixture
def run(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    shutil.copytree(videos, "videos")
    for name, source in (("d", "a"), ("e", "b"), ("f", "a"), ("g", "b")):
        shutil.copy(f"videos/{source}.mp4", f"videos/{name}.mp4")
    actions = dict(
        zip("abcdefg", ("pour", "swing", "pour", "pour", "pour", "pour", "swing"), strict=True)
    )
    entries = {
        f"{name}.mp4": {"action": action, "split": "train" if name in "abc" else "test"}
        for name, action in actions.items()
    }
    Path("videos/labels.json").write_text(json.dumps({"videos": entries}))
    build_index("videos")
    assert train.main(["tiny.yaml", "train.run_dir=run", "train.steps=1", "train.log_every=1"]) == 0
    return Path("run")


def spoil(path: Path) -> None:
    """Replace a file's content; size and time stay, so the index does not show it."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_retrieve_equals_evaluate_and_the_report_shows_both(run, capsys):
    assert evaluate.main([str(run), "--protocol", "vclr"]) == 0
    metrics = json.loads((run / "evaluation.json").read_text())["rows"]["trained"]["metrics"]
    capsys.readouterr()
    assert retrieve.main(["--run", "run", "--scope", "videos", "--neighbours", "2"]) == 0
    # d, f and g are copies of training videos with the same action, e is one with another action.
    assert metrics["recall_at_1"] == 0.75
    assert capsys.readouterr().out.startswith(
        "R@1 0.750, R@5 -, R@10 -, R@20 -, R@50 - (4 test videos, 3 training videos)"
    )
    assert Image.open(run / "retrieval_videos.png").width < 850  # two neighbours
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Nearest training videos" in page
    assert "--scope videos --queries 20 --neighbours 5</code> shows more of them" in page
    assert "<tr><td>pour</td><td>0.667</td><td>3</td></tr>" in page
    assert (run / "pictures/retrieval_videos.png").is_file()


def test_wrong_requests(run, capsys):
    command = ["--run", "run", "--scope", "videos"]
    assert retrieve.main([*command, "--split", "train"]) == 2
    assert "has no queries; choose another --split" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        retrieve.main([*command, "--neighbours", "0"])
    assert stopped.value.code == 2
    spoil(Path("videos/e.mp4"))
    assert retrieve.main(command) == 3
    assert "e.mp4" in capsys.readouterr().out
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("encoder: fve", "encoder: conv3d"))
    assert retrieve.main(command) == 2


def test_the_report_needs_no_readable_training_video(run, capsys):
    assert evaluate.main([str(run), "--protocol", "vclr"]) == 0  # so the report has the sheet
    for name in "abc":
        spoil(Path(f"videos/{name}.mp4"))
    assert report.main([str(run)]) == 3
    page = (run / "report.html").read_text()
    assert "<h2>Nearest training videos</h2>\n<p>There is no picture: " in page
    assert capsys.readouterr().err.count("left out a.mp4") == 1
