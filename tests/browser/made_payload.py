"""A small payload for the player: pictures whose brightness tells the frame, known alignments."""

import base64
import io

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason='needs Pillow: pip install "fastseq[train]"')

WIDTH, HEIGHT = 64, 48
NAMES = ["wait", "swing", "follow"]
NOISE = np.random.default_rng(0).normal(size=(4, 16))


def brightness(frame: int, total: int) -> int:
    """Grey value of a frame's pictures, 20 to 235 over the video."""
    return round(20 + 215 * frame / max(total - 1, 1))


def frame_of(grey: float, total: int) -> float:
    """Frame number that a grey value tells; the inverse of `brightness`."""
    return (grey - 20) * max(total - 1, 1) / 215


def video(name, progress, *, fps=30.0, stride=1, labels=True, action="golf", seed=0):
    """One video: ``progress`` (n,) is how far the action is at each row, 0 to 1."""
    rows = len(progress)
    total = (rows - 1) * stride + 1
    frames = [row * stride for row in range(rows)]
    pictures = [_webp(brightness(frame, total)) for frame in frames]
    angles = np.pi * np.asarray(progress)
    embeddings = np.zeros((rows, 16))
    embeddings[:, 0], embeddings[:, 1] = np.cos(angles), np.sin(angles)
    embeddings += 0.05 * NOISE[seed % 4]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    phases = np.digitize(progress, [0.3, 0.6]).tolist()
    return {
        "id": name,
        "action": action,
        "total": total,
        "frames": frames,
        "times": [frame / fps for frame in frames],
        "phases": phases if labels else None,
        "pictures": {
            "width": WIDTH,
            "height": HEIGHT,
            "type": "image/webp",
            "offsets": np.cumsum([0, *map(len, pictures)]).tolist(),
            "data": base64.b64encode(b"".join(pictures)).decode(),
        },
        "embeddings": {
            "width": 16,
            "data": base64.b64encode(np.round(embeddings * 32767).astype("<i2").tobytes()).decode(),
        },
        "points": (0.9 * embeddings[:, :2]).round(4).tolist(),
    }


def pair(a, b, progress_a, progress_b, *, inside=(0.0, 1.0)):
    """Rows of b by progress; those of a whose progress is not ``inside`` have none."""
    nearest = [int(np.argmin(np.abs(np.asarray(progress_b) - value))) for value in progress_a]
    low, high = inside
    matched = [
        row if low <= value <= high else -1 for row, value in zip(nearest, progress_a, strict=True)
    ]
    last_a, last_b = max(len(progress_a) - 1, 1), len(progress_b) - 1
    even = [round(row * last_b / last_a) for row in range(len(progress_a))]
    events = []
    if a["phases"] and b["phases"]:
        for phase in (1, 2):
            if phase not in a["phases"] or phase not in b["phases"]:
                continue
            row, true = a["phases"].index(phase), b["frames"][b["phases"].index(phase)]
            carried = b["frames"][matched[row]] if matched[row] >= 0 else None
            error = None if carried is None else carried - true
            time = dict(zip(b["frames"], b["times"], strict=True))
            unaligned = b["frames"][even[row]]
            events.append(
                {
                    "phase": phase,
                    "row": row,
                    "carried": carried,
                    "true": true,
                    "error": error,
                    "even_error": unaligned - true,
                    "seconds": None if carried is None else time[carried] - time[true],
                    "even_seconds": time[unaligned] - time[true],
                }
            )
    return {
        "matched": matched,
        "even": even,
        "path": [[row, other] for row, other in enumerate(matched) if other >= 0],
        "similarity": 0.91,
        "straight": 0.74,
        "events": events,
    }


def payload(names=("one.mp4", "two.mp4", "three.mp4", "four.mp4"), *, labels=True):
    """Four videos. Of the first pair, b waits for 20 frames and is then as fast as a; the third is
    faster towards its end; the fourth is of another action with the fifth, which has one frame.

    Pair (0, 2) is open: rows of a before 0.2 and behind 0.8 of the action are outside.
    """
    one = np.linspace(0, 1, 60)
    two = np.concatenate([np.zeros(20), np.linspace(0, 1, 60)])
    three = np.linspace(0, 1, 45) ** 0.5
    four = np.linspace(0, 1, 12)
    progress = [one, two, three, four, np.array([0.5])]
    videos = [
        video(names[0], one, labels=labels),
        video(names[1], two, fps=25.0, labels=labels, seed=1),
        video(names[2], three, stride=2, labels=labels, seed=2),
        video(names[3], four, labels=labels, action="pour", seed=3),
        video("single.mp4", progress[4], labels=labels, action="pour"),
    ]
    pairs = {}
    for a, first in enumerate(videos):
        for b, second in enumerate(videos):
            if a != b and first["action"] == second["action"]:
                inside = (0.2, 0.8) if {a, b} == {0, 2} else (0.0, 1.0)
                pairs[f"{a},{b}"] = pair(first, second, progress[a], progress[b], inside=inside)
    return {
        "start": [0, 1],
        "classes": {"golf": NAMES, "pour": ["fill", "pour", "rest"]},
        "videos": videos,
        "pairs": pairs,
    }


def _webp(grey: int) -> bytes:
    """A picture of one grey; the lower right quarter is striped, so that it has some content."""
    pixels = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
    pixels[HEIGHT // 2 :, WIDTH // 2 :: 8] = 128
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    return file.getvalue()
