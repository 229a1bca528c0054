"""VCLR's protocol: one feature for each video, linear SVM, retrieval."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import vclr_cases
from runs import RECIPE

from fastseq.video import read_frames
from training import evaluate, report, train
from training.data.index import build_index, load_index
from training.evaluation.encoders import (
    TRAINED,
    UNTRAINED,
    Encoder,
    load_compared_encoders,
    load_encoder,
)
from training.evaluation.video_level import (
    KS,
    clip_places,
    definitions,
    video_features,
    video_scores,
)


def test_scores_by_hand():
    train_rows = np.array([[1.0, 0.0], [3.0, 0.3], [0.0, 2.0], [-0.2, 1.0], [0.1, 1.0]])
    labels = np.array(["a", "a", "b", "b", "c"])
    test_rows = np.array([[5.0, 0.1], [0.02, 4.0], [0.3, 5.0], [0.0, 1.0]])
    # Nearest by angle: for the first row the candidates are 1.1, 0 and 5.7 degrees away, and so on.
    # 2nd: b at 0.3, c at 5.4; 3rd: c at 2.3, b at 3.4; 4th ("d") is never found.
    scores = video_scores(train_rows, labels, test_rows, np.array(["a", "c", "c", "d"]))
    assert scores["recall_at_1"] == 2 / 4
    assert scores["recall_at_5"] == 3 / 4
    assert np.isnan([scores[f"recall_at_{k}"] for k in (10, 20, 50)]).all()
    # Separable through the origin: two classes are separated without an intercept.
    assert video_scores(train_rows[:4], labels[:4], test_rows[:2], np.array(["a", "b"]))[
        "linear_svm"
    ] == pytest.approx(1.0)
    assert set(definitions(2)) == {"protocol", *scores}
    assert "shorter side has 8/7 of augmentation.size" in definitions(2)["protocol"]
    assert "in a clip of 8 neighbouring ones" in definitions(2, shifted=8)["protocol"]
    assert KS == (1, 5, 10, 20, 50)


def test_the_svm_minimises_what_liblinear_s_2_does():
    """0.5 |w|^2 + C sum max(0, 1 - y <w, x>)^2, no intercept: from scipy, on the same rows."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)) + 0.5
    y = np.where(x @ [1.0, -1.0, 0.3] + 0.5 * rng.standard_normal(40) > 0.4, 1, -1)
    unseen = rng.standard_normal((500, 3))

    def objective(w):
        return 0.5 * w @ w + (np.maximum(0, 1 - y * (x @ w)) ** 2).sum()

    w = minimize(objective, np.zeros(3), tol=1e-10).x
    sides = np.sign(unseen @ w).astype(int)
    clear = np.abs(unseen @ w) > 1e-2
    assert video_scores(x, y, unseen[clear], sides[clear])["linear_svm"] == 1.0


@pytest.fixture
def run(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    shutil.copytree(videos, "videos")
    shutil.copy("videos/a.mp4", "videos/d.mp4")
    actions = {"a": "pour", "b": "swing", "c": "pour", "d": "swing"}
    entries = {
        f"{name}.mp4": {"action": action, "split": "test" if name in "cd" else "train"}
        for name, action in actions.items()
    }
    Path("videos/labels.json").write_text(json.dumps({"videos": entries}))
    build_index("videos")
    assert train.main(["tiny.yaml", "train.run_dir=run", "train.steps=1", "train.log_every=1"]) == 0
    return Path("run")


def test_features_are_means_of_central_squares(run):
    encoder, cfg = load_encoder(run)
    records = load_index("videos").videos
    seen = []

    def pixels(frames):
        seen.append(frames)
        return frames.float().mean((3, 4))

    encoders = {"it": encoder, "pixels": Encoder(None, pixels)}
    features = video_features(encoders, records, cfg, progress=False)
    assert features["it"].shape == (4, cfg.model.embedding_size)
    assert all(frames.shape == (1, 30, 3, 16, 16) for frames in seen)
    for record, feature in zip(records, features["pixels"], strict=True):
        numbers = np.round(np.linspace(0, record.frames - 1, 30)).astype(int)
        # 16 x 16 in the middle of 18 x 28 pixels corresponds to 28 x 28 in the middle of 32 x 48.
        central = read_frames(record.path, numbers)[:, 2:30, 10:38].float().mean((0, 1, 2))
        np.testing.assert_allclose(feature, central.numpy(), rtol=2e-3)
    assert torch.is_tensor(seen[0])


@pytest.mark.parametrize(
    ("frames", "length", "stride", "starts"),
    [
        (40, 4, 2, [0, 4, 7, 11, 15, 18, 22, 26, 29, 33]),  # 33 + 3 * 2 is the last frame
        (12, 4, 3, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]),
        (7, 4, 2, [0] * 10),
    ],
)
def test_clips_are_evenly_spaced(frames, length, stride, starts):
    places = clip_places(frames, length, stride)
    assert places.tolist() == [[s + stride * k for k in range(length)] for s in starts]


def test_a_short_video_repeats_its_last_frame():
    assert clip_places(5, 4, 2).tolist() == [[0, 2, 4, 4]] * 10


def test_features_of_clips(run, monkeypatch):
    """Each encoder gets the ten clips of a video, and its feature is their mean."""
    Path("clips.yaml").write_text(vclr_cases.RECIPE)
    options = [*vclr_cases.CLIPS, "train.steps=1", "train.log_every=1"]
    monkeypatch.setattr(train, "training_loader", vclr_cases.tuples)
    assert train.main(["clips.yaml", "train.run_dir=clips", *options]) == 0
    encoders, cfg = load_compared_encoders("clips", "videos")
    encoder = encoders[TRAINED]
    assert encoder.weights.about["clip"] == [4, 2]
    assert encoder.weights.about != encoders[UNTRAINED].weights.about
    records = load_index("videos").videos
    seen = []

    def pixels(clips):
        seen.append(clips)
        return clips.float().mean((3, 4, 5))

    features = video_features(
        {"it": encoder, "pixels": Encoder(None, pixels)}, records, cfg, progress=False
    )
    assert features["it"].shape == (4, encoder.embed(encoder.features(seen[0])).shape[-1])
    for record, clips, one in zip(records, seen, features["it"], strict=True):
        numbers = clip_places(record.frames, 4, 2)
        assert clips.shape == (1, 10, 4, 3, 16, 16)
        central = read_frames(record.path, numbers.flatten())[:, 2:30, 10:38].float()
        np.testing.assert_allclose(
            clips[0].float().mean((2, 3, 4)).flatten(), central.mean((1, 2, 3)), rtol=5e-3
        )
        np.testing.assert_allclose(one, encoder.features(clips)[0].mean(0).numpy(), rtol=1e-4)
    assert evaluate.main(["clips", "--protocol", "vclr", "--folder", "videos"]) == 0
    result = json.loads(Path("clips/evaluation.json").read_text())
    assert "10 evenly spaced clips of 4 frames with stride 2" in result["definitions"]["protocol"]


def test_command_and_report(run, capsys):
    assert evaluate.main([str(run), "--protocol", "vclr"]) == 0
    out = capsys.readouterr().out
    assert "linear SVM" in out
    assert "R@50" in out
    assert "2 training and 2 test videos; actions: pour, swing; " in out
    result = json.loads((run / "evaluation.json").read_text())
    assert result["protocol"] == "vclr"
    assert {"untrained", "trained"} <= result["rows"].keys() == result["row_definitions"].keys()
    metrics = result["rows"]["trained"]["metrics"]
    assert set(metrics) <= set(result["definitions"])
    assert metrics["recall_at_5"] is None  # there are only two training videos
    # a.mp4 and its copy d.mp4 have the same picture but different actions.
    assert metrics["recall_at_1"] <= 0.5
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "R@1, higher is better" in page
    assert "protocol vclr. Bold" in page


def test_wrong_requests(run, capsys):
    assert evaluate.main([str(run), "--protocol", "vclr", "--few-shot"]) == 2
    assert "--few-shot applies to frames" in capsys.readouterr().err
    Path("videos/labels.json").write_text(
        json.dumps({"videos": {f"{name}.mp4": {"split": "test"} for name in "cd"}})
    )
    build_index("videos")
    assert evaluate.main([str(run), "--protocol", "vclr"]) == 2
    assert "all have the action 'all'" in capsys.readouterr().err
