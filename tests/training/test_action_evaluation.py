"""Evaluation of classifiers of actions: test views, metrics by brute force, the command."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from action_cases import RECIPE
from narrow import NARROW_CNN, NARROW_RESNET

from fastseq.video import PyAVEngine, probe, read_frames, write_video
from training import evaluate, report
from training.data.index import build_index
from training.data.views import Views, read_views, views_of
from training.evaluation.action import class_names, classifier_command, few_clips, video_scores
from training.evaluation.action_scores import (
    action_metrics,
    class_cells,
    confusion_counts,
    per_class,
    ranking,
    softmax,
    worst_classes,
)
from training.evaluation.confusion import SHOWN, confusion_picture
from training.evaluation.encoders import load_encoder
from training.loop.labels import write_classes
from training.models import resnet, small_cnn
from training.pages.report_page import _learned_from
from training.recipe.load import load_config
from training.runs.folder import contents
from training.runs.model import initial_model, load_run
from training.runs.weight_writers import write_run
from training.support.command import UserError
from training.train import main

# --- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "count", "expected"),
    [
        (Views(1), 9, [[4]]),
        (Views(3), 9, [[1], [4], [7]]),
        (Views(25), 300, [[6 + 12 * k] for k in range(25)]),  # mmaction2: its middles
        (Views(2, length=3, stride=2), 12, [[2, 4, 6], [6, 8, 10]]),
        (Views(3, length=4), 3, [[0, 1, 2, 2]] * 3),  # too short: the last frame again
        (Views(1, segments=4), 12, [[1, 4, 7, 10]]),
        (Views(2, segments=3), 12, [[1, 5, 9], [3, 7, 11]]),
        (Views(1, segments=4), 2, [[0, 0, 1, 1]]),
    ],
)
def test_frames_of_clips(views, count, expected):
    assert views.frames(count).tolist() == expected


def test_clips_cover_a_video_evenly():
    for count in (40, 41, 97):
        frames = Views(10, length=5, stride=3).frames(count)
        assert frames.shape == (10, 5)
        assert (np.diff(frames, axis=1) == 3).all()
        starts = count - 12  # places at which a clip may start
        for k, first in enumerate(frames[:, 0].tolist()):
            inside = [s for s in range(starts) if k <= 10 * (s + 0.5) / starts < k + 1]
            assert first in inside
            assert abs(first - np.mean(inside)) <= 1


@pytest.mark.parametrize(
    ("views", "short"),
    [
        (Views(8), 0),
        (Views(9), 1),
        (Views(4, length=5), 0),
        (Views(5, length=5), 1),
        (Views(9, length=9), 3),
        (Views(2, segments=4), 0),
        (Views(3, segments=4), 1),
    ],
)
def test_videos_with_fewer_clips_than_views_are_counted(views, short):
    records = [SimpleNamespace(frames=frames) for frames in (8, 12, 13)]
    said = few_clips(views, records)
    assert said[: len("too short")] == "too short" * bool(short)
    assert f": {short} of 3 videos;" in said or not short


def test_crops_along_the_longer_side_and_ten_crops():
    centre = (8, 20, 24, 24, False)
    assert Views(1, 1).boxes(40, 64, 24) == [centre]
    assert Views(1, 3).boxes(40, 64, 24) == [(8, x, 24, 24, False) for x in (0, 20, 40)]
    assert Views(1, 3).boxes(64, 40, 24) == [(x, 8, 24, 24, False) for x in (0, 20, 40)]
    assert Views(1, 1).boxes(40, 64, 224) == [(0, 12, 40, 40, False)]
    # As torchvision's ten_crop: five of the frame, five of the mirrored frame.
    frame = torch.arange(40 * 64).view(40, 64)
    mirrored = frame.flip(1)
    wanted = [
        one[top : top + 24, left : left + 24]
        for one in (frame, mirrored)
        for top, left in ((0, 0), (0, 40), (16, 0), (16, 40), (8, 20))
    ]
    for (top, left, height, width, flip), expected in zip(
        Views(1, 10).boxes(40, 64, 24), wanted, strict=True
    ):
        crop = frame[top : top + height, left : left + width]
        assert torch.equal(crop.flip(1) if flip else crop, expected)


def test_views_are_pixels_of_the_video(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (12, 32, 48, 3), dtype=np.uint8), 25)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    good = probe(tmp_path / "a.mp4")
    bad = SimpleNamespace(**{**vars(good), "path": str(tmp_path / "b.mp4"), "id": "b.mp4"})
    views = Views(2, 10, length=3, stride=2)
    engine = PyAVEngine(16)
    found = list(read_views([good, bad, good], views, 16, 32, engine=engine))
    engine.close()
    assert isinstance(found[1], Exception)
    assert torch.equal(found[0], found[2])
    assert found[0].shape == (20, 3, 3, 16, 16)
    pixels = read_frames(tmp_path / "a.mp4").permute(0, 3, 1, 2)
    for crop, (top, left, height, width, flip) in enumerate(views.boxes(32, 48, 16)):
        for clip, places in enumerate(views.frames(12).tolist()):
            for k, place in enumerate(places):
                expected = pixels[place, :, top : top + height, left : left + width]
                expected = expected.flip(-1) if flip else expected
                assert torch.equal(found[0][2 * crop + clip, k], expected)


# --- metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "absent"), [(2, []), (4, [0]), (5, []), (9, [3, 8])])
def test_metrics_by_brute_force(classes, absent):
    rng = np.random.default_rng(classes)
    present = [k for k in range(classes) if k not in absent]
    labels = rng.choice(present, 60)
    scores = rng.integers(0, 4, (60, classes)) / 4  # many ties
    hits: dict[int, list[int]] = {1: [], 5: []}
    shares: dict[int, list[int]] = {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        # A class is behind all with a higher score and behind equal ones of a lower number.
        ahead = sum(s > row[label] or (s == row[label] and k < label) for k, s in enumerate(row))
        for k in hits:
            hits[k].append(ahead < k)
        shares.setdefault(label, []).append(ahead == 0)
    got = action_metrics(scores, labels)
    assert got["top_1"] == pytest.approx(np.mean(hits[1]))
    if classes < 5:
        assert np.isnan(got["top_5"])
    else:
        assert got["top_5"] == pytest.approx(np.mean(hits[5]))
    mean = np.mean([np.mean(shares[label]) for label in shares])
    assert got["mean_class_accuracy"] == pytest.approx(mean)
    assert set(shares) == set(present)

    predicted = ranking(scores)[:, 0]
    counts = confusion_counts(predicted, labels, classes)
    for a in range(classes):
        for b in range(classes):
            assert counts[a, b] == sum((labels == a) & (predicted == b))
    rows = per_class(counts, [f"c{k}" for k in range(classes)])
    assert set(rows) == {f"c{k}" for k in present}
    for label, right in shares.items():
        row = rows[f"c{label}"]
        assert (row["videos"], row["accuracy"]) == (len(right), pytest.approx(np.mean(right)))
        assert sum(row["taken_for"].values()) == right.count(False)
        assert list(row["taken_for"].values()) == sorted(row["taken_for"].values(), reverse=True)
        assert f"c{label}" not in row["taken_for"]


def test_the_order_of_classes_does_not_decide_the_metrics_without_ties():
    rng = np.random.default_rng(1)
    scores, labels = rng.random((40, 7)), rng.integers(0, 7, 40)
    order = rng.permutation(7)
    moved = action_metrics(scores[:, order], np.argsort(order)[labels])
    assert moved == pytest.approx(action_metrics(scores, labels))


def test_probabilities():
    scores = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])
    np.testing.assert_allclose(softmax(scores), [[0.25, 0.75], [1.0, 0.0]], atol=1e-12)


def test_scores_or_probabilities_are_averaged():
    scores = torch.tensor([[[4.0, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, 0.5, 0.1]]])
    model = torch.nn.Linear(1, 1)
    model.clip_scores = lambda clips: scores[:, clips[0, :, 0, 0, 0, 0].long()]
    # Clips of 50 frames, whose pixels are their numbers, are passed to the model one by one.
    clips = torch.arange(3)[:, None, None, None, None].expand(3, 50, 3, 2, 2)
    np.testing.assert_allclose(video_scores(model, clips, "score"), scores[0].mean(0), rtol=1e-6)
    wanted = scores[0].softmax(1).mean(0)
    np.testing.assert_allclose(video_scores(model, clips, "prob"), wanted, rtol=1e-6)
    assert scores[0].mean(0).argmax() != wanted.argmax()


def test_worst_classes_are_shown(tmp_path):
    counts = np.diag(np.full(40, 10))
    counts[7] = np.roll(counts[7], 1)  # always wrong
    counts[31, 31], counts[31, 2] = 5, 5
    counts[3] = 0  # no videos
    shown = worst_classes(counts, SHOWN)
    assert len(shown) == SHOWN
    assert {7, 31} <= set(shown)
    assert 3 not in shown
    assert list(shown) == sorted(shown)
    assert worst_classes(counts, 2).tolist() == [7, 31]
    names = [f"class {k}" for k in range(40)]
    cells = class_cells(per_class(counts, names))
    assert cells[1] == ["class 7", "10", "0.000", "class 8 (10)"]
    assert cells[2] == ["class 31", "10", "0.500", "class 2 (5)"]
    assert confusion_picture(counts, names, tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    assert confusion_picture(counts[:3, :3], names[:3], tmp_path / "d.png").stat().st_size > 1000


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(video_folder, monkeypatch):
    """A run on a, b, c; d and e are test videos, e of an action that was not learned."""
    for name in "def":
        (video_folder / f"{name}.mp4").write_bytes((video_folder / "a.mp4").read_bytes())
    actions = {"a": "pour", "b": "swing", "c": "throw", "d": "swing", "e": "fly", "f": "pour"}
    videos = {
        f"{name}.mp4": {"action": action, "split": "test" if name in "def" else "train"}
        for name, action in actions.items()
    }
    (video_folder / "labels.json").write_text(json.dumps({"videos": videos}))
    build_index(video_folder)
    Path("action.yaml").write_text(RECIPE)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    assert main(["action.yaml", "train.steps=2", "train.run_dir=run", "data.batch_size=3"]) == 0
    return "run"


def test_evaluate_writes_metrics_classes_and_the_picture(run, capsys):
    options = ["--protocol", "action", "--clips", "4", "--crops", "3", "--average", "prob"]
    assert evaluate.main([run, *options]) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("run/evaluation.json").read_text())
    assert result["views"] == {"clips": 4, "crops": 3, "average": "prob"}
    assert result["videos"] == {"train": 3, "test": 2}
    assert result["classes"] == ["pour", "swing", "throw"]
    unseen = {"videos whose action no training video has": 1}
    assert result["rows"]["trained"]["left_out"] == unseen
    assert result["unseen"] == {"e.mp4": "fly"}
    assert "left out: 1 video whose action no training video has\n  e.mp4 (fly)\n" in shown
    assert "top-1" in shown
    assert "4 evenly spaced clips of 1 frame with 3 crops along the longer side" in shown
    assert Path("run/confusion.png").exists()

    model, cfg = load_run(run)
    assert views_of(cfg) == Views(3)
    scores = {}
    for name in "df":
        view = views_of(cfg, 4, 3)
        video = read_frames(f"videos/{name}.mp4")
        # 18 = 8/7 of the 16 px is the side of the scaled frame.
        engine = PyAVEngine(16)
        (clips,) = read_views([probe(f"videos/{name}.mp4")], view, 16, 18, engine=engine)
        engine.close()
        assert len(clips) == 12
        assert len(video) == 30
        with torch.no_grad():
            rows = [model.clip_scores(clip[None, None])[0, 0].softmax(0) for clip in clips]
        scores[name] = torch.stack(rows).mean(0)
    right = [scores["d"].argmax().item() == 1, scores["f"].argmax().item() == 0]
    metrics = result["rows"]["trained"]["metrics"]
    assert metrics["top_1"] == np.mean(right)
    assert metrics["mean_class_accuracy"] == np.mean(right)
    assert metrics["top_5"] is None
    counts = np.zeros((3, 3), dtype=int)
    counts[1, scores["d"].argmax()] += 1
    counts[0, scores["f"].argmax()] += 1
    assert result["confusion"] == counts.tolist()

    assert evaluate.main([run, "--protocol", "action", "--split", "train", "--clips", "32"]) == 0
    shown = capsys.readouterr().out
    assert "too short for 32 different clips: 3 of 3 videos; equal clips" in shown
    assert "unseen" not in json.loads(Path("run/evaluation_train.json").read_text())
    found = {path.name for path in contents(Path(run))}  # what --overwrite removes
    assert {"confusion.png", "confusion_train.png", "classes.json"} <= found


def test_videos_that_cannot_be_read_are_left_out(run, capsys):
    Path("videos/f.mp4").write_bytes(b"broken")
    import training.data.selection

    opened = training.data.selection.open_index
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training.data.selection,
            "open_index",
            lambda cfg, folder=None, *, class_set=None, check=True: opened(
                cfg, folder, class_set=class_set, check=False
            ),
        )
        assert evaluate.main([run, "--protocol", "action"]) == 3
    result = json.loads(Path("run/evaluation.json").read_text())
    assert list(result["left_out"]) == ["f.mp4"]
    assert result["videos"]["test"] == 1
    assert "left out f.mp4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--protocol", "vclr", "--clips", "3"], "--clips works only with --protocol action, got"),
        (["--crops", "3"], "--crops works only with --protocol action, got --protocol carl"),
        (["--protocol", "action", "--clips", "0"], "--clips: expected at least 1, got 0"),
        (["--protocol", "action", "--stride", "2"], "--stride applies to frames, but"),
        (["--protocol", "action", "--split", "val"], "has no videos in the split 'val'"),
    ],
)
def test_options_that_do_not_fit(run, capsys, options, said):
    assert evaluate.main([run, *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("run/evaluation.json").exists()


def test_a_run_without_a_classifier_is_refused(run, capsys):
    Path("run/classes.json").write_text('{"classes": [["pour"]]}')
    assert evaluate.main([run, "--protocol", "action"]) == 2
    error = capsys.readouterr().err
    assert "expected the 3 classes of the run in classes.json, got 1 classes" in error
    options = ["train.steps=1", "model.backbone=small_cnn", "data.batch_size=2"]
    assert main(["tiny.yaml", *options, "train.run_dir=other"]) == 0
    assert evaluate.main(["other", "--protocol", "action"]) == 2
    error = capsys.readouterr().err
    assert "which a run with model.encoder=tsn has, got model.encoder=fve" in error
    command = (
        f"recipes/tsn_ucf101.yaml model.weights=other model.backbone=small_cnn data.folder="
        f"{Path('videos').resolve()} train.run_dir=other_action"
    )
    assert command in error


@pytest.mark.parametrize(
    ("backbone", "recipe"), [("s3d", "r3d"), ("r2plus1d_18", "r3d"), ("resnet18", "tsn")]
)
def test_the_suggested_recipe_has_the_runs_network(backbone, recipe):
    cfg = load_config("recipes/vclr.yaml", ["data.folder=[a b,c]", "model.backbone=resnet18"])
    cfg.model.backbone = backbone
    cfg.model.backbone_to = "layer3"
    assert classifier_command("runs/x", cfg) == (
        f"python -m training.train recipes/{recipe}_ucf101.yaml model.weights=runs/x "
        f"model.backbone={backbone} model.backbone_to=layer3 'data.folder=[a b,c]' "
        "train.run_dir=runs/x_action"
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("all", 'write the 3 actions in the order of the scores, {"classes": [["archery"], ...]},'),
        ("backbone", "its classifier has random weights; convert again with model.weights_parts=a"),
    ],
)
def test_a_converted_classifier_has_no_names(tmp_path, monkeypatch, parts, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_cnn, "WIDTHS", NARROW_CNN)
    Path("action.yaml").write_text(RECIPE)
    options = ["loss.action.classes=3", f"model.weights_parts={parts}"]
    cfg = load_config("action.yaml", options)
    write_run(Path("run"), initial_model(cfg).state_dict(), cfg)
    with pytest.raises(UserError) as error:
        class_names("run", cfg)
    assert said in str(error.value)
    write_classes(Path("run"), [("a",), ("b",), ("c",)])
    assert class_names("run", cfg) == ["a", "b", "c"]


def test_stored_embeddings_of_tsm_depend_on_its_segments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resnet, "WIDTHS", NARROW_RESNET)
    Path("action.yaml").write_text(RECIPE)
    shifted = ["model.backbone=resnet18", "model.pool=mean", "model.shift=8"]
    clips = []
    for number in (3, 5):
        options = [*shifted, f"data.segments={number}", "loss.action.classes=4"]
        cfg = load_config("action.yaml", options)
        write_run(Path(f"run{number}"), initial_model(cfg).state_dict(), cfg)
        encoder, _ = load_encoder(f"run{number}")
        clips.append(encoder.weights.about["clip"])
    assert clips == [[3, 1], [5, 1]]


def test_the_report_describes_the_run(run):
    assert report.main([run]) == 0
    page = Path("run/report.html").read_text()
    assert "small_cnn, model.encoder=tsn, frames of 16 pixels, 3 segments of a video" in page
    assert "<h2>Training loss</h2>" in page
    assert "time index" not in page  # which a classifier of videos is not compared with


def test_the_report_states_that_the_run_learned_from_labels(tmp_path):
    (tmp_path / "action.yaml").write_text(RECIPE)
    assert _learned_from(load_config(tmp_path / "action.yaml")) == "with labels"
    both = ["model.encoder=fve", "loss.classification.weight=1", "loss.scl.weight=1"]
    several = load_config(
        tmp_path / "action.yaml", ["data.clips=views", "loss.action.weight=null", *both]
    )
    assert _learned_from(several) == "with and without labels"
    alone = [*both[:1], "data.clips=views", "loss.action.weight=null"]
    assert _learned_from(load_config(tmp_path / "action.yaml", alone)) == "without labels"


def test_nothing_to_score_says_why(run, capsys):
    labels = json.loads(Path("videos/labels.json").read_text())
    for name in "df":  # e has an action that was not learned
        path = Path(f"videos/{name}.mp4")
        before = path.stat()
        path.write_bytes(b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert evaluate.main([run, "--protocol", "action"]) == 2
    assert "none of the videos in the split 'test' of" in capsys.readouterr().err
    for name in "df":
        labels["videos"][f"{name}.mp4"]["split"] = "val"
    Path("videos/labels.json").write_text(json.dumps(labels))
    build_index("videos")
    assert evaluate.main([run, "--protocol", "action"]) == 2
    error = capsys.readouterr().err
    assert "none of the 1 videos of the split 'test' has an action that the run" in error
    assert "(pour, swing, throw): choose another --split or --folder" in error
