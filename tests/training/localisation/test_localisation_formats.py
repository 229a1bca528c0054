"""Files of features and annotations: what others read, and errors for what cannot be used."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from training.evaluation.embed import EmbeddedVideo, save_embeddings
from training.localisation.annotations import (
    Annotated,
    annotate,
    read_annotations,
    video_names,
    write_annotations,
)
from training.localisation.formats import (
    feature_path,
    find_features,
    read_features,
    rescaled,
    write_features,
)
from training.support.command import LeftOut, UserError


def record(name="a/v_x.mp4", frames=20, phases=None, gaps=(), times=None, **more):
    given = {"action": "all", "split": "train", "fps": 10.0, "crop": None, **more}
    return SimpleNamespace(
        id=name, frames=frames, phases=phases, gaps=gaps, times=times, path=name, **given
    )


def annotated(name="v_a", split="train", segments=((1.0, 2.0),), seconds=4.0):
    labels = ("run",) * len(segments)
    return Annotated(name, seconds, 40, split, np.array(segments).reshape(-1, 2), labels)


def test_names_are_activitynets():
    ids = ["v1-3/train_val/v_--1DO2V4K74.mp4", "v1-3/test/0wR5jVB-WPk.webm", "v_v_bcdefghij.mkv"]
    assert [*video_names(ids).values()] == ["v_--1DO2V4K74", "v_0wR5jVB-WPk", "v_v_bcdefghij"]
    assert [*video_names(ids)] == ids


def test_videos_of_one_name_are_named_by_their_paths():
    found = video_names(["a/v_x.mp4", "b/x.mp4", "a/y.mp4"])
    assert found == {"a/v_x.mp4": "v_a%2Fv_x", "b/x.mp4": "v_b%2Fx", "a/y.mp4": "v_y"}
    with pytest.raises(UserError, match=r"x\.mp4 and x\.mkv would both be written as v_x"):
        video_names(["x.mp4", "x.mkv"])


def test_segments_are_runs_of_phases():
    phases = np.array([-1, -1, 0, 0, 0, 1, 1, -1, -1, 1])
    found = annotate(record(frames=10, phases=phases), {"all": ["run", "jump"]}, "v_x")
    np.testing.assert_allclose(found.segments, [[0.2, 0.5], [0.5, 0.7], [0.9, 1.0]])
    assert found.labels == ("run", "jump", "jump")
    assert found.seconds == pytest.approx(1.0)
    np.testing.assert_allclose(found.shares, found.segments)
    several = {"all": ["run", "jump"], "other": ["sit"]}
    assert annotate(record(frames=10, phases=phases), several, "v_x").labels[0] == "all: run"
    times = np.arange(10) * 0.2 + 0.05 * (np.arange(10) > 4)  # of varying rate
    varying = annotate(
        record(frames=10, phases=phases, times=times), {"all": ["run", "jump"]}, "v_x"
    )
    np.testing.assert_allclose(varying.segments[0], [0.4, 1.05])
    assert not len(annotate(record(frames=10), {}, "v_x").segments)


def test_annotations_are_read_as_written(tmp_path):
    videos = [
        annotated(segments=[[0.5, 1.25], [2.0, 4.0]]),
        annotated("v_b", "val"),
        annotated("v_c", "test", segments=[]),
    ]
    names = write_annotations(tmp_path, videos)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert "anet_anno_test.json" not in names  # no test video has a segment
    found = read_annotations(tmp_path / "anet_anno.json")
    assert [(one.name, one.split, one.labels) for one in found] == [
        ("v_a", "train", ("run", "run")),
        ("v_b", "val", ("run",)),
    ]
    np.testing.assert_allclose(found[0].segments, videos[0].segments)
    assert found[0].seconds == 4.0
    truth = json.loads((tmp_path / "activity_net.json").read_text())
    assert {*truth} == {"version", "taxonomy", "database"}  # what eval_proposal.py requires
    assert truth["database"]["b"]["subset"] == "validation"
    assert truth["database"]["b"]["annotations"] == [{"segment": [1.0, 2.0], "label": "run"}]
    part = json.loads((tmp_path / "anet_anno_train.json").read_text())
    needed = {"duration_second", "duration_frame", "feature_frame", "annotations"}
    assert needed <= {*part["v_a"]}
    write_annotations(tmp_path, videos[:1])
    assert not (tmp_path / "anet_anno_val.json").exists()  # of the earlier call
    table = (tmp_path / "video_info_new.csv").read_text().splitlines()
    assert table[0].split(",")[:2] == ["video", "numFrame"]
    assert table[1].startswith("v_a,40,4.0,10.0,10.0,training")


def test_features_that_stop_early_shorten_the_video(tmp_path):
    write_annotations(tmp_path, [annotated()])
    path = tmp_path / "anet_anno.json"
    content = json.loads(path.read_text())
    content["v_a"]["feature_frame"] = 32  # of 40
    path.write_text(json.dumps(content))
    assert read_annotations(path)[0].seconds == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_second": 0}, "v_a: duration_second must be a number of seconds above 0"),
        ({"duration_frame": "40"}, "v_a: duration_frame must be a number of frames above 0"),
        ({"feature_frame": 0}, "v_a: feature_frame must be a number of frames above 0"),
        ({"subset": "train"}, 'v_a: subset must be "training"'),
        ({"annotations": {}}, "v_a: annotations must be a list"),
        ({"annotations": [{"segment": [2, 1], "label": "x"}]}, "v_a: annotations must be"),
        ({"annotations": [{"segment": [1, 2]}]}, "v_a: annotations must be"),
    ],
)
def test_wrong_annotations(tmp_path, change, message):
    write_annotations(tmp_path, [annotated()])
    path = tmp_path / "anet_anno.json"
    content = json.loads(path.read_text())
    content["v_a"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_annotations(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"v_a": 3}'])
def test_annotations_that_are_none(tmp_path, text):
    (tmp_path / "anet_anno.json").write_text(text)
    with pytest.raises(UserError, match=r"anet_anno\.json"):
        read_annotations(tmp_path / "anet_anno.json")


def test_csv_is_what_mmaction2_reads(tmp_path):
    features = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    path = feature_path(tmp_path, "bmn", 10, "v_a")
    assert path == tmp_path / "csv_mean_10/v_a.csv"
    write_features(path, features)
    # As LoadLocalizationFeature does.
    raw = np.loadtxt(path, dtype=np.float32, delimiter=",", skiprows=1)
    np.testing.assert_allclose(raw, features, rtol=1e-5)
    assert path.read_text().startswith("f0,f1,f2\n")
    npy = feature_path(tmp_path, "gtad", 10, "v_a")
    write_features(npy, features)
    np.testing.assert_array_equal(np.load(npy), features)


def test_rescaled_embeddings(tmp_path):
    embeddings = np.eye(4, dtype=np.float32)[np.repeat([0, 1], 10)]
    found = rescaled(EmbeddedVideo(record(), embeddings), 4)
    np.testing.assert_allclose(found[[0, 3]], 2 * np.eye(4)[[0, 1]], atol=1e-6)  # 2 = sqrt(4)
    # Frames of a gap are bridged: what follows stays at its time.
    gappy = record(gaps=((2, 8),))
    found = rescaled(EmbeddedVideo(gappy, embeddings[np.r_[0:2, 8:20]]), 4)
    np.testing.assert_allclose(found[[0, 3]], 2 * np.eye(4)[[0, 1]], atol=1e-6)


@pytest.mark.parametrize("form", ["bmn", "gtad", "npz"])
def test_features_are_read_as_written(tmp_path, form):
    rng = np.random.default_rng(0)
    wanted, videos = {}, []
    for name in ("a", "b"):
        embeddings = rng.standard_normal((20, 4)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        video = EmbeddedVideo(record(f"{name}.mp4"), embeddings)
        wanted[f"v_{name}"] = rescaled(video, 10)
        if form == "npz":
            save_embeddings(tmp_path / f"{name}.mp4.npz", video, "weights")
        else:
            path = feature_path(tmp_path, form, 10, f"v_{name}")
            write_features(path, wanted[f"v_{name}"])
        videos.append(Annotated(f"v_{name}", 2.0, 20, "train", np.array([[0.0, 1.0]]), ("x",)))
    write_annotations(tmp_path, videos)  # its csv file is none of features
    left_out = LeftOut()
    absent = annotated("v_absent")
    found = read_features(find_features(tmp_path), [*videos, absent], left_out, 10)
    assert {*found} == {"v_a", "v_b"}
    assert {*left_out.videos} == {"v_absent"}
    for name, features in found.items():
        np.testing.assert_allclose(features, wanted[name], rtol=1e-4, atol=1e-4)


def test_npz_files_are_found_by_the_names_of_the_prepared_videos(tmp_path):
    for one in ("a/x.mp4", "c/y.mp4"):
        save_embeddings(tmp_path / f"{one}.npz", EmbeddedVideo(record(one), np.eye(20)), "weights")
    assert {*find_features(tmp_path)} == {"v_x", "v_y"}
    # The prepared folder has another x, whose embeddings are missing.
    names = video_names(["a/x.mp4", "b/x.mp4", "c/y.mp4"])
    assert {*find_features(tmp_path, names)} == {"v_a%2Fx", "v_y"}


def test_folders_without_features(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        find_features(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no features; `python -m training\.extract RUN"):
        find_features(tmp_path)
    for steps in (10, 20):
        path = feature_path(tmp_path, "bmn", steps, "v_a")
        write_features(path, np.zeros((steps, 2), np.float32))
    with pytest.raises(UserError, match=r"2 kinds \(csv_mean_10, csv_mean_20\)"):
        find_features(tmp_path)
    assert list(find_features(tmp_path / "csv_mean_10")) == ["v_a"]


def test_features_that_cannot_be_used(tmp_path):
    videos = [annotated("v_a"), annotated("v_b")]
    write_features(tmp_path / "v_a.npy", np.zeros((10, 3), np.float32))
    write_features(tmp_path / "v_b.npy", np.zeros((10, 4), np.float32))
    with pytest.raises(UserError, match=r"v_b\.npy has 10 steps of 4 features, and .*v_a\.npy"):
        read_features(find_features(tmp_path), videos, LeftOut())
    write_features(tmp_path / "v_b.npy", np.full((10, 3), np.nan, np.float32))
    with pytest.raises(UserError, match=r"v_b\.npy has NaN or infinite numbers"):
        read_features(find_features(tmp_path), videos, LeftOut())
    write_features(tmp_path / "v_b.npy", np.zeros(10, np.float32))
    with pytest.raises(UserError, match=r"expected \(steps, features\), got shape \(10,\)"):
        read_features(find_features(tmp_path), videos, LeftOut())
    (tmp_path / "v_b.npy").write_bytes(b"cut")
    left_out = LeftOut()
    assert {*read_features(find_features(tmp_path), videos, left_out)} == {"v_a"}
    assert "v_b.npy" in left_out.videos["v_b"]
