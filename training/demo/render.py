"""Renders the demo's data set: short H.264 videos of two actions, and their labels.

    python -m training.demo.render FOLDER [--clutter] [--seed 0]

writes FOLDER/<action>/<split>_000.mp4 ... and FOLDER/labels.json. A video has 100 to 300 frames of
one action with its phases in order. The shares of the phases are drawn from a flat Dirichlet
distribution, so the time since the start says little about the phase; colours, viewpoint, build of
the actor and playing speed vary too.

Every video has its own random streams, keyed by (seed, action, split, number): the same options
render the same pictures, and more videos do not change the earlier ones.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from training.demo.scene import ACTIONS, Drawing, draw_camera, draw_clutter, draw_look
from training.support.command import UserError

GENERATOR = "training.demo.render/1"  # raise the number whenever the pictures or labels change
SPLITS = ("train", "test")
FPS = 30
QUALITY = 26  # x264's constant rate factor: about 20 kB per video
FRAMES = (100, 300)
SHORTEST_PHASE = 4  # frames
CONCENTRATION = 1.0  # of the Dirichlet distribution of phase shares; lower values vary more
CLUTTER = (3, 4)  # moving and still shapes


@dataclass(frozen=True)
class VideoPlan:
    """The content of a video, planned before anything is drawn."""

    action: str
    split: str
    number: int
    boundaries: tuple[int, ...]  # first frame of phase 1, 2, ...
    frames: int

    @property
    def id(self) -> str:
        return f"{self.action}/{self.split}_{self.number:03d}.mp4"

    @property
    def phases(self) -> np.ndarray:
        """(frames,) int64: the number of boundaries up to and including each frame."""
        return np.searchsorted(self.boundaries, np.arange(self.frames), side="right")

    @property
    def fractions(self) -> np.ndarray:
        """(frames,) in [0, 1): how far each frame is into its phase, linear in time."""
        edges = np.array([0, *self.boundaries, self.frames])
        phase = self.phases
        return (np.arange(self.frames) - edges[phase]) / np.diff(edges)[phase]


@dataclass(frozen=True)
class RenderSummary:
    folder: Path
    videos: int
    frames: int
    bytes: int
    seconds: float
    reused: bool  # the folder already held this data set


def _stream(seed: int, plan_key: tuple[str, str, int], what: int) -> np.random.Generator:
    action, split, number = plan_key
    return np.random.default_rng(
        [seed, list(ACTIONS).index(action), SPLITS.index(split), number, what]
    )


def plan_video(seed: int, action: str, split: str, number: int) -> VideoPlan:
    rng = _stream(seed, (action, split, number), 0)
    phases = len(ACTIONS[action].phases)
    frames = int(rng.integers(FRAMES[0], FRAMES[1], endpoint=True))
    shares = rng.dirichlet(np.full(phases, CONCENTRATION))
    # Every phase has the shortest length; the remaining frames are distributed.
    ends = np.cumsum(shares)[:-1] * (frames - phases * SHORTEST_PHASE)
    boundaries = np.floor(ends).astype(int) + SHORTEST_PHASE * np.arange(1, phases)
    return VideoPlan(action, split, number, tuple(boundaries.tolist()), frames)


def plan_dataset(
    *, seed: int = 0, train_per_action: int = 40, test_per_action: int = 12
) -> list[VideoPlan]:
    counts = dict(zip(SPLITS, (train_per_action, test_per_action), strict=True))
    return [
        plan_video(seed, action, split, number)
        for action in ACTIONS
        for split, count in counts.items()
        for number in range(count)
    ]


def render_video(
    plan: VideoPlan, *, seed: int, side: int = 96, clutter: bool = False
) -> np.ndarray:
    """The video's frames, uint8 (frames, side, side, 3)."""
    key = (plan.action, plan.split, plan.number)
    rng = _stream(seed, key, 1)
    look, camera = draw_look(rng), draw_camera(rng)
    drawing = Drawing(plan.frames)
    if clutter:
        draw_clutter(drawing, *CLUTTER, _stream(seed, key, 2))
    ACTIONS[plan.action].draw(drawing, plan.phases, plan.fractions, look, rng)
    ends, radii = camera.project(np.stack(drawing.ends, 1), np.stack(drawing.radii, 1), side)
    pictures = np.empty((plan.frames, side, side, 3), np.uint8)
    _paint(ends, radii, 255 * np.stack(drawing.colours), 255 * look.background, pictures)
    return pictures


@njit(cache=True, nogil=True)
def _paint(ends, radii, colours, background, pictures):
    """Paint antialiased capsules on a plain background; coverage is the clipped edge distance.

    ends (F, P, 4) and radii (F, P) in pixels, colours (P, 3) and background (3,) in 0 to 255.
    """
    frames, height, width, _ = pictures.shape
    canvas = np.empty((height, width, 3))
    for f in range(frames):
        canvas[:] = background
        for p in range(radii.shape[1]):
            radius = radii[f, p]
            if radius <= 0:
                continue
            x0, y0, x1, y1 = ends[f, p]
            dx, dy = x1 - x0, y1 - y0
            length2 = max(dx * dx + dy * dy, 1e-12)
            margin = radius + 1
            left = max(int(np.floor(min(x0, x1) - margin)), 0)
            right = min(int(np.ceil(max(x0, x1) + margin)), width)
            upper = max(int(np.floor(min(y0, y1) - margin)), 0)
            lower = min(int(np.ceil(max(y0, y1) + margin)), height)
            for row in range(upper, lower):
                for column in range(left, right):
                    x, y = column + 0.5 - x0, row + 0.5 - y0
                    along = min(max((x * dx + y * dy) / length2, 0.0), 1.0)
                    x, y = x - along * dx, y - along * dy
                    cover = min(radius + 0.5 - np.sqrt(x * x + y * y), 1.0)
                    if cover > 0:
                        for c in range(3):
                            under = canvas[row, column, c]
                            canvas[row, column, c] = under + cover * (colours[p, c] - under)
        for row in range(height):
            for column in range(width):
                for c in range(3):
                    pictures[f, row, column, c] = int(canvas[row, column, c] + 0.5)


def _labels(plans: list[VideoPlan], options: dict) -> dict:
    return {
        "generator": options,
        "classes": {name: list(action.phases) for name, action in ACTIONS.items()},
        "videos": {
            plan.id: {
                "action": plan.action,
                "split": plan.split,
                "boundaries": list(plan.boundaries),
            }
            for plan in plans
        },
    }


def _is_there(folder: Path, labels: dict) -> bool:
    """True if `folder` holds exactly this data set; FileExistsError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = "choose another folder, or delete this one to render it again"
    try:
        found = json.loads((folder / "labels.json").read_text())
    except (OSError, ValueError):
        found = None
    if found != labels:
        made_with = found.get("generator") if isinstance(found, dict) else None
        raise FileExistsError(
            f"{folder} exists and holds something else (made with {made_with}, expected "
            f"{labels['generator']}): {advice}"
        )
    missing = [name for name in labels["videos"] if not (folder / name).is_file()]
    if missing:
        raise FileExistsError(
            f"{folder} lacks {len(missing)} of its {len(labels['videos'])} videos, "
            f"such as {missing[0]}: {advice}"
        )
    return True


def check_numbers(**numbers: int) -> None:
    """UserError if the numbers of training and test videos do not make a data set."""
    if min(numbers.values()) < 0 or not any(numbers.values()):
        got = ", ".join(f"{name}={number}" for name, number in numbers.items())
        raise UserError(f"expected numbers of videos of at least 0 and not both 0, got {got}")


def render_dataset(
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    train_per_action: int = 40,
    test_per_action: int = 12,
    side: int = 96,
    clutter: bool = False,
    progress: bool = True,
) -> RenderSummary:
    """Write the data set to `folder`, or reuse it if the same options made it before.

    Args:
        folder: folder to write, complete or not at all; it must be new, empty, or hold this very
            data set.
        seed: seed of everything random.
        train_per_action, test_per_action: numbers of videos of each of the two actions.
        side: width and height in pixels, even (H.264 stores colour at half resolution).
        clutter: draw still and moving shapes behind the actor; labels and actor stay the same.
        progress: show a progress bar.

    Raises:
        UserError: side is odd or below 16, or there would be no video.
        FileExistsError: the folder holds something else.
    """
    check_numbers(train_per_action=train_per_action, test_per_action=test_per_action)
    plans = plan_dataset(
        seed=seed, train_per_action=train_per_action, test_per_action=test_per_action
    )
    options = {"name": GENERATOR, "seed": seed, "side": side, "clutter": clutter}
    labels = _labels(plans, options)
    return write_dataset(folder, plans, labels, progress=progress)


def write_dataset(
    folder: str | os.PathLike, plans: Sequence[VideoPlan], labels: dict, *, progress: bool = True
) -> RenderSummary:
    """Write planned videos and their labels, or reuse them if `folder` holds exactly these.

    ``labels["generator"]`` holds the seed, side and clutter of the videos.
    """
    began = time.perf_counter()
    folder = Path(folder)
    options = {key: labels["generator"][key] for key in ("seed", "side", "clutter")}
    if options["side"] < 16 or options["side"] % 2:
        raise UserError(f"side must be an even number of at least 16 pixels, got {options['side']}")
    reused = _is_there(folder, labels)
    if not reused:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            whole = Path(scratch) / "videos"
            _write_videos(whole, plans, **options, progress=progress)
            (whole / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
            os.replace(whole, folder)
    return RenderSummary(
        folder=folder,
        videos=len(plans),
        frames=sum(plan.frames for plan in plans),
        bytes=sum((folder / plan.id).stat().st_size for plan in plans),
        seconds=time.perf_counter() - began,
        reused=reused,
    )


def _write_videos(folder: Path, plans, *, seed, side, clutter, progress) -> None:
    from tqdm import tqdm

    from fastseq.video import write_video

    for plan in plans:
        (folder / plan.id).parent.mkdir(parents=True, exist_ok=True)

    def write(plan: VideoPlan) -> None:
        pictures = render_video(plan, seed=seed, side=side, clutter=clutter)
        write_video(folder / plan.id, pictures, FPS, crf=QUALITY)

    # Painting and encoding both release the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        jobs = [pool.submit(write, plan) for plan in plans]
        try:
            for job in tqdm(
                as_completed(jobs), "render", len(jobs), unit="video", disable=not progress
            ):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def describe(summary: RenderSummary) -> str:
    took = "there already" if summary.reused else f"{summary.seconds:.1f} s"
    return (
        f"{summary.folder}: {summary.videos} videos, {summary.frames} frames, "
        f"{summary.bytes / 1e6:.1f} MB, {took}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.render", description="Render the demo's videos and labels."
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--train-per-action", type=int, default=40, help="training videos, default: 40"
    )
    parser.add_argument("--test-per-action", type=int, default=12, help="test videos, default: 12")
    parser.add_argument(
        "--side", type=int, default=96, help="width and height in pixels, default: 96"
    )
    parser.add_argument("--clutter", action="store_true", help="draw shapes behind the actor")
    options = parser.parse_args(argv)
    try:
        summary = render_dataset(**vars(options))
    except (ValueError, OSError, ImportError) as error:  # ValueError: UserError, and numpy of seeds
        parser.error(str(error))
    print(describe(summary))


if __name__ == "__main__":
    main()
