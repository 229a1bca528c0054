"""What the player of a page embeds, against values worked out by hand and by brute force."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from fastseq.video import read_frames, write_video
from training.data.index import VideoRecord
from training.evaluation.alignment import OUTSIDE, align, align_open, stretched
from training.evaluation.embed import EmbeddedVideo
from training.pages import payload as payload_module
from training.pages.payload import payload
from training.pages.sections import chosen, which
from training.pages.thumbnails import thumbnails

SIDE = 32


def on_arc(position):
    """Unit-length embeddings float32 (n, 2), at this angle in degrees."""
    angle = np.deg2rad(np.asarray(position, float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def video(folder, name, position, *, phases=None, fps=25.0, frames=None, **fields):
    """A file whose frame k is grey 2 k + 10, and its embeddings; ``frames`` are used of it."""
    used = np.arange(len(position)) if frames is None else np.asarray(frames)
    total = fields.pop("total", len(position))
    path = folder / f"{name}.mp4"
    levels = (np.minimum(2 * np.arange(total) + 10, 250)).astype(np.uint8)
    write_video(path, (np.full((SIDE, 48, 3), level, np.uint8) for level in levels), fps)
    record = VideoRecord(
        id=name,
        path=str(path),
        frames=total,
        fps=fps,
        width=48,
        height=SIDE,
        phases=None if phases is None else np.asarray(phases),
        gaps=tuple((k, k + 1) for k in range(total) if k not in set(used.tolist())),
        **fields,
    )
    return EmbeddedVideo(record, on_arc(position))


def picture(entry, row):
    content = base64.b64decode(entry["data"])
    offsets = entry["offsets"]
    return np.asarray(Image.open(io.BytesIO(content[offsets[row] : offsets[row + 1]])))


def embeddings(entry):
    values = np.frombuffer(base64.b64decode(entry["data"]), "<i2").reshape(-1, entry["width"])
    return values / 32767


@pytest.fixture
def pair(tmp_path):
    """a holds its second phase, b hurries through its first: events differ from equal shares."""
    a = video(tmp_path, "a", [0, 10, 40, 41, 42, 70], phases=[0, 0, 1, 1, 1, 2])
    position = [0, 40, 50, 60, 70, 80, 90, 90]
    b = video(tmp_path, "b", position, phases=[0, 0, 1, 1, 1, 1, 2, 2], fps=50)
    return a, b


def test_two_short_videos_by_hand(pair):
    made = payload(pair, {"all": ["x", "y", "z"], "other": ["v"]}, start=(0, 1), progress=False)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["start"], made["classes"]) == ([0, 1], {"all": ["x", "y", "z"]})
    assert [*made["pairs"]] == ["0,1", "1,0"]
    first, second = made["videos"]
    assert (first["id"], first["action"], first["total"]) == ("a", "all", 6)
    assert first["times"] == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert first["frames"] == [0, 1, 2, 3, 4, 5]
    assert second["phases"] == [0, 0, 1, 1, 1, 1, 2, 2]
    there = made["pairs"]["0,1"]
    # The frame at 42 is nearer to 50 than that at 70, which is paired with all from 60 on.
    last = [[5, k] for k in range(3, 8)]
    assert there["path"] == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], *last]
    assert there["matched"] == [0, 0, 1, 1, 2, 5]
    assert there["even"] == [0, 1, 3, 4, 6, 7]
    assert there["events"] == [
        {
            "phase": 1, "row": 2, "carried": 1, "true": 2,
            "error": -1, "even_error": 1, "seconds": -0.02, "even_seconds": 0.02,
        },
        {
            "phase": 2, "row": 5, "carried": 5, "true": 6,
            "error": -1, "even_error": 1, "seconds": -0.02, "even_seconds": 0.02,
        },
    ]  # fmt: skip
    back = made["pairs"]["1,0"]["events"]
    assert [event["true"] for event in back] == [2, 5]
    assert back[0]["seconds"] == back[0]["error"] / 25
    off = np.deg2rad([0, 10, 0, 1, 8, 10, 0, 10, 20, 20])
    assert there["similarity"] == pytest.approx(np.cos(off).mean(), abs=1e-5)
    for one, entry in zip(pair, made["videos"], strict=True):
        np.testing.assert_allclose(embeddings(entry["embeddings"]), one.embeddings, atol=1 / 32767)
    points = np.concatenate([entry["points"] for entry in made["videos"]])
    np.testing.assert_allclose(points.min(axis=0), -1)
    np.testing.assert_allclose(points.max(axis=0), 1)


def test_every_pair_of_an_action_and_no_other(tmp_path):
    actions = ("x", "y", "x", "x")
    videos = [video(tmp_path, str(k), [0, 50], action=a) for k, a in enumerate(actions)]
    made = payload(videos, {}, start=(0, 2), progress=False)
    assert {*made["pairs"]} == {"0,2", "0,3", "2,0", "2,3", "3,0", "3,2"}
    assert (made["start"], made["classes"]) == ([0, 2], {})
    assert all(pair["events"] == [] for pair in made["pairs"].values())
    assert made["videos"][0]["phases"] is None


def test_pictures_are_the_frames_of_the_rows(tmp_path):
    """Trimmed, with a gap, cropped: still the frame with that number, inside the crop."""
    used = [3, 4, 5, 7, 8, 9]
    trimmed = video(
        tmp_path, "a", 9.0 * np.arange(6), frames=used, total=12, trim=(3, 9), crop=(8, 4, 30, 20)
    )
    whole = video(tmp_path, "b", 9.0 * np.arange(6))
    made = payload([trimmed, whole], {}, start=(0, 1), progress=False)
    entry = made["videos"][0]
    assert (entry["frames"], entry["total"]) == (used, 12)
    assert (entry["pictures"]["width"], entry["pictures"]["height"]) == (30, 20)
    assert entry["pictures"]["type"] == "image/webp"
    assert len(entry["pictures"]["offsets"]) == 7
    expected = read_frames(trimmed.record.path, used, crop=(8, 4, 30, 20)).numpy()
    for row in range(6):
        shown = picture(entry["pictures"], row).astype(float)
        np.testing.assert_allclose(shown.mean(), expected[row].mean(), atol=1)
    assert made["pairs"]["1,0"]["matched"] == [0, 1, 2, 3, 4, 5]  # rows, not frames
    assert made["pairs"]["1,0"]["even"] == stretched(whole, trimmed).tolist()


def test_an_open_alignment_leaves_frames_and_events_outside(pair):
    a, b = pair
    given = align_open(a, b, 0.9)
    closed = align(b, a)
    # As if the first two frames of a, and the event at row 2, lay before the path.
    given.matched[:3] = OUTSIDE
    alignments = {(0, 1): given, (1, 0): closed}
    made = payload(pair, {}, start=(0, 1), alignments=alignments, progress=False)["pairs"]
    assert made["0,1"]["matched"][:3] == [OUTSIDE] * 3
    assert made["0,1"]["similarity"] == round(given.similarity, 6)
    event = made["0,1"]["events"][0]
    assert (event["carried"], event["error"], event["seconds"]) == (None, None, None)
    assert (event["true"], event["even_error"]) == (2, 1)
    assert made["1,0"]["matched"] == closed.matched.tolist()


def test_long_videos_are_thinned_and_events_stay_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(payload_module, "MOST_ROWS", 11)
    monkeypatch.setattr(payload_module, "MOST_STEPS", 7)
    positions = [np.linspace(0, 90, 53), np.linspace(0, 90, 37) ** 2 / 90]
    cuts = [(17, 33), (19, 30)]
    videos = [
        video(tmp_path, str(k), p, phases=np.searchsorted(c, np.arange(len(p)), side="right"))
        for k, (p, c) in enumerate(zip(positions, cuts, strict=True))
    ]
    made = payload(videos, {}, start=(0, 1), progress=False)
    whole = align(*videos)
    a, b = (entry["frames"] for entry in made["videos"])
    for frames, cut, length in ((a, cuts[0], 53), (b, cuts[1], 37)):
        assert len(frames) <= 11
        assert {0, *cut, length - 1} <= {*frames}
        assert max(np.diff(frames)) <= -(-length // 6)  # 7 rows besides those of the events
    there = made["pairs"]["0,1"]
    for row, matched in enumerate(there["matched"]):  # the kept frame of b nearest to the matched
        full = whole.matched[a[row]]
        assert abs(b[matched] - full) == min(abs(frame - full) for frame in b)
    even = stretched(*videos)
    for event, cut, true in zip(there["events"], *cuts, strict=True):
        assert a[event["row"]] == cut
        assert (event["carried"], event["true"]) == (whole.matched[cut], true)
        assert b[there["matched"][event["row"]]] == event["carried"]  # the picture shows it
        assert event["error"] == whole.matched[cut] - true
        assert event["even_error"] == even[cut] - true
    path = np.array(there["path"])
    assert len(path) == 7
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [len(a) - 1, len(b) - 1]
    assert (np.diff(path, axis=0) >= 0).all()
    for entry, one in zip(made["videos"], videos, strict=True):
        kept = one.embeddings[entry["frames"]]
        np.testing.assert_allclose(embeddings(entry["embeddings"]), kept, atol=1 / 32767)


def test_wide_embeddings_are_projected_and_cosines_stay(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((2, 20, 6)) @ rng.standard_normal((6, 300))  # 6 directions
    wide += 1e-3 * rng.standard_normal(wide.shape)
    wide /= np.linalg.norm(wide, axis=2, keepdims=True)
    videos = [
        EmbeddedVideo(video(tmp_path, str(k), np.zeros(20)).record, rows.astype(np.float32))
        for k, rows in enumerate(wide)
    ]
    for most_bytes, width, off in ((2_500_000, 40, 2e-3), (40 * 2 * 8, 8, 2e-3)):
        monkeypatch.setattr(payload_module, "EMBEDDING_BYTES", most_bytes)
        made = payload(videos, {}, start=(0, 1), progress=False)
        a, b = (embeddings(entry["embeddings"]) for entry in made["videos"])
        assert a.shape == (20, width)
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-3)
        np.testing.assert_allclose(a @ b.T, wide[0] @ wide[1].T, atol=off)


def test_pictures_fit_their_bytes(tmp_path):
    """Noise, which compresses badly: smaller and coarser until it fits."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 120, 200, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", frames, 25.0)
    record = VideoRecord(
        id="noise", path=str(tmp_path / "noise.mp4"), frames=20, fps=25.0, width=200, height=120
    )
    noise = EmbeddedVideo(record, on_arc(np.zeros(20)))
    still = video(tmp_path, "still", np.zeros(30))
    sizes = {}
    for most in (10**9, 60_000, 15_000):
        rows = [np.arange(20), np.arange(30)]
        made = thumbnails([noise, still], rows, most_bytes=most, progress=False)
        sizes[most] = sum(entry["offsets"][-1] for entry in made)
        assert sizes[most] <= most
        assert made[1]["width"] <= 48  # never enlarged
        assert made[0]["height"] == round(made[0]["width"] * 120 / 200)
    assert sizes[15_000] < sizes[60_000] < sizes[10**9]
    assert sizes[60_000] > 20_000  # and not needlessly small


def test_which_videos_are_chosen(tmp_path):
    def videos(actions):
        return [
            EmbeddedVideo(
                VideoRecord(id=f"{k}", path="", frames=1, fps=25, width=1, height=1, action=action),
                on_arc([0]),
            )
            for k, action in enumerate(actions)
        ]

    def names(actions):
        return "".join(one.record.id for one in chosen(videos(actions)))

    assert names("xxxxxxxxxx") == "01234567"
    assert names("xyxyz") == "0123"  # z has no other video
    assert names("xxxxxxyyy") == "01234678"[:8]
    assert names("xxyyzzwwvv") == "01234567"  # pairs of four actions
    assert names("xy") == names("") == ""
    all_of_them = videos("xxxxxxyyyz")
    assert which(all_of_them, chosen(all_of_them), "test") == (
        "Shown: 8 of the 10 test videos, the first 5 of 'x' and the first 3 of 'y' in the order of "
        "the folder. They were not chosen by result."
    )
