"""The demo's generated videos: labels, pictures, files, and how much the time alone reveals."""

import json
import math
import warnings

import numpy as np
import pytest

from fastseq.video import probe
from training.demo import render, scene

av = pytest.importorskip("av", reason="PyAV writes and reads the demo's videos")
SMALL = {"train_per_action": 2, "test_per_action": 1, "side": 32, "progress": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "videos"
    return folder, render.render_dataset(folder, **SMALL)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.codec_context.name, stream.average_rate


def test_plans_have_every_phase_in_order():
    plans = render.plan_dataset(seed=1)
    assert len({plan.id for plan in plans}) == len(plans) == 104
    for plan in plans:
        edges = [0, *plan.boundaries, plan.frames]
        assert 100 <= plan.frames <= 300
        assert len(plan.boundaries) == len(scene.ACTIONS[plan.action].phases) - 1
        assert min(np.diff(edges)) >= render.SHORTEST_PHASE
        expected = [sum(b <= t for b in plan.boundaries) for t in range(plan.frames)]
        assert plan.phases.tolist() == expected


def test_fraction_is_linear_within_a_phase():
    plan = render.VideoPlan("swing", "train", 0, (4, 6, 14, 15), 20)
    expected = [0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 2, *np.arange(8) / 8, 0, *np.arange(5) / 5]
    np.testing.assert_allclose(plan.fractions, expected)
    position = plan.phases + plan.fractions
    assert (np.diff(position) > 0).all()


def test_more_videos_leave_the_earlier_ones_alone():
    few = render.plan_dataset(seed=3, train_per_action=2, test_per_action=1)
    many = render.plan_dataset(seed=3, train_per_action=5, test_per_action=4)
    assert set(few) < set(many)
    assert set(few).isdisjoint(render.plan_dataset(seed=4))


def time_index_accuracy(seed: int, action: str) -> float:
    """Phase accuracy of a linear classifier that only sees t / frames, in several forms."""
    from sklearn.linear_model import LogisticRegression

    def features_and_phases(split, count):
        plans = [render.plan_video(seed, action, split, number) for number in range(count)]
        time = np.concatenate([np.arange(plan.frames) / plan.frames for plan in plans])[::3, None]
        order = np.arange(1, 6)
        waves = np.pi * time * order
        features = np.concatenate([time**order, np.sin(waves), np.cos(waves)], axis=1)
        return features, np.concatenate([plan.phases for plan in plans])[::3]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bound needs no full convergence
        classifier = LogisticRegression(max_iter=300).fit(*features_and_phases("train", 40))
    return classifier.score(*features_and_phases("test", 12))


def mean_time_index_accuracy() -> float:
    return np.mean(
        [time_index_accuracy(seed, action) for seed in range(3) for action in scene.ACTIONS]
    )


def test_time_alone_says_little_about_the_phase():
    assert 0.3 < mean_time_index_accuracy() <= 0.65


def test_time_would_say_much_if_the_shares_varied_less(monkeypatch):
    monkeypatch.setattr(render, "CONCENTRATION", 20.0)
    assert mean_time_index_accuracy() > 0.75


@pytest.mark.parametrize("action", scene.ACTIONS)
def test_motion_is_continuous_and_moves(action):
    count = len(scene.ACTIONS[action].phases)
    phase = np.repeat(np.arange(count), 2)
    fraction = np.tile([0.0, 1 - 1e-6], count)
    drawing = scene.Drawing(len(phase))
    rng = np.random.default_rng(0)
    scene.ACTIONS[action].draw(drawing, phase, fraction, scene.draw_look(rng), rng)
    ends, radii = np.stack(drawing.ends, 1), np.stack(drawing.radii, 1)
    for frame in range(1, len(phase)):
        shown = (radii[frame - 1] > 0) & (radii[frame] > 0)
        step = abs(ends[frame] - ends[frame - 1])[shown].max()
        if phase[frame] != phase[frame - 1]:
            assert step < 0.04  # only sway
        elif scene.ACTIONS[action].phases[phase[frame]] not in ("rest", "address", "finish"):
            assert step > 0.3


def test_pose_depends_on_phase_and_fraction_alone():
    """The same moments in another order produce the same pictures (the arm sways only at rest)."""
    phase = np.array([1, 1, 2, 3, 4, 4])
    fraction = np.array([0.1, 0.8, 0.5, 0.3, 0.0, 0.6])
    poses = []
    for order in (slice(None), slice(None, None, -1)):
        rng = np.random.default_rng(5)
        drawing = scene.Drawing(6)
        scene.draw_place(drawing, phase[order], fraction[order], scene.draw_look(rng), rng)
        poses.append(np.stack(drawing.ends, 1)[order])
    np.testing.assert_allclose(poses[0], poses[1])


def test_painted_capsule_has_its_area_and_colour():
    ends = np.array([[[12.3, 10.0, 40.1, 31.7]]])
    picture = np.zeros((1, 48, 48, 3), np.uint8)
    colour = np.array([[250.0, 100.0, 0.0]])
    render._paint(ends, np.array([[5.0]]), colour, np.zeros(3), picture)
    length = math.dist(ends[0, 0, :2], ends[0, 0, 2:])
    area = 2 * 5 * length + math.pi * 5**2
    assert picture[0, :, :, 0].sum() / 250 == pytest.approx(area, rel=0.01)
    assert picture[0, 21, 26].tolist() == [250, 100, 0]
    assert picture[0, 2, 45].tolist() == [0, 0, 0]


def test_colours_stand_out_from_the_background():
    weights = np.array([0.299, 0.587, 0.114])
    for seed in range(50):
        look = scene.draw_look(np.random.default_rng(seed))
        for colour in (look.body, look.tool, look.prop):
            assert abs((colour - look.background) @ weights) > 0.4


def test_files_hold_what_the_labels_say(dataset):
    folder, summary = dataset
    labels = json.loads((folder / "labels.json").read_text())
    assert labels["classes"] == {name: list(a.phases) for name, a in scene.ACTIONS.items()}
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))
    assert files == sorted(labels["videos"])
    assert len(files) == summary.videos == 6
    total = 0
    for name, label in labels["videos"].items():
        number = int(name[-7:-4])
        plan = render.plan_video(0, label["action"], label["split"], number)
        assert name == f"{label['action']}/{label['split']}_{number:03d}.mp4"
        assert label["boundaries"] == list(plan.boundaries)
        decoded, codec, rate = decode(folder / name)
        assert (codec, rate) == ("h264", render.FPS)
        assert probe(folder / name).frames == plan.frames
        assert decoded.shape == (plan.frames, 32, 32, 3)
        rendered = render.render_video(plan, seed=0, side=32)
        # Lossy, with colour at half resolution; a misplaced frame would be far off.
        assert abs(decoded.astype(int) - rendered).mean() < 8
        total += plan.frames
    assert summary.frames == total
    assert summary.bytes == sum((folder / name).stat().st_size for name in files)


def test_rendering_again_gives_the_same_pictures(dataset, tmp_path):
    folder, _ = dataset
    render.render_dataset(tmp_path / "again", **(SMALL | {"train_per_action": 1}))
    for path in (tmp_path / "again").rglob("*.mp4"):
        first = folder / path.relative_to(tmp_path / "again")
        assert path.read_bytes() == first.read_bytes()
    plan = render.plan_video(0, "swing", "test", 0)
    pictures = [render.render_video(plan, seed=seed, side=32) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).mean() > 0.1


def test_same_options_reuse_the_files(dataset):
    folder, summary = dataset
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = render.render_dataset(folder, **SMALL)
    assert again.reused
    assert not summary.reused
    assert (again.videos, again.frames, again.bytes) == (
        summary.videos,
        summary.frames,
        summary.bytes,
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_options_never_mix_with_what_is_there(dataset, tmp_path):
    folder, _ = dataset
    for other in ({"seed": 1}, {"side": 48}, {"clutter": True}, {"test_per_action": 2}):
        with pytest.raises(FileExistsError, match="choose another folder"):
            render.render_dataset(folder, **(SMALL | other))
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(FileExistsError, match="holds something else"):
        render.render_dataset(tmp_path, **SMALL)


def test_missing_video_is_named(tmp_path):
    folder = tmp_path / "videos"
    options = SMALL | {"train_per_action": 1, "test_per_action": 0}
    render.render_dataset(folder, **options)
    (folder / "swing" / "train_000.mp4").unlink()
    with pytest.raises(FileExistsError, match=r"lacks 1 of its 2 videos.*swing/train_000"):
        render.render_dataset(folder, **options)


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def fail(plan, **options):
        if plan.action == "swing":
            raise RuntimeError("interrupted")
        return original(plan, **options)

    original = render.render_video
    monkeypatch.setattr(render, "render_video", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        render.render_dataset(tmp_path / "videos", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_clutter_lies_behind_the_actor():
    plan = render.plan_video(0, "place", "train", 0)
    plain = render.render_video(plan, seed=0, side=64).astype(int)
    cluttered = render.render_video(plan, seed=0, side=64, clutter=True).astype(int)
    background = plain[0, 0, 0]
    changed = (plain != cluttered).any(-1)
    assert 0.02 < changed.mean() < 0.6
    body = np.round(255 * scene.draw_look(render._stream(0, ("place", "train", 0), 1)).body)
    inside = (plain == body).all(-1)
    assert inside.mean() > 0.01
    assert not changed[inside].any()
    assert ((plain == background).all(-1) & changed).any()


@pytest.mark.parametrize("wrong", [{"side": 33}, {"side": 8}, {"train_per_action": -1}])
def test_wrong_options_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        render.render_dataset(tmp_path / "videos", **(SMALL | wrong))


def test_command_line(tmp_path, capsys):
    arguments = [str(tmp_path / "videos"), "--side=32", "--train-per-action=1"]
    render.main([*arguments, "--test-per-action=0"])
    assert "2 videos" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        render.main(arguments)
    assert stopped.value.code == 2
    assert "holds something else" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        render.main([str(tmp_path / "other"), "--seed=-1"])
    assert stopped.value.code == 2
    assert "non-negative" in capsys.readouterr().err
