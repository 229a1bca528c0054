"""Reading clips from files: clips per second of every engine and of the methods without fastseq.

``python -m benchmarks.video [--video FILE]``; ``pytest benchmarks/test_video.py`` does the same.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import results
from fastseq.video import (
    Augmentation,
    Clip,
    Reading,
    VideoError,
    VideoInfo,
    decode_side,
    eval_draw,
    open_engine,
    probe,
    scaled_size,
    write_video,
)
from fastseq.video.augment import draw_clip

HEIGHT, WIDTH, FRAMES = 360, 640, 450
SIZE = 224
LENGTHS = (32, 240)  # frames per clip
BATCH = 4  # clips per batch
DECODING = "decoding alone"  # as fastseq's PyAV engine decodes: its floor
COLUMNS = (
    "device",
    "clip",
    "frames",
    "augmentation",
    "provider",
    "clips_per_s",
    "frames_per_s",
    "ratio",  # fastseq's best clips/s over this one's, same rounds
    "rounds",
    "decode_share",  # time to decode alone / time
    "augmentation_share",  # 1 - time without augmentation / time with it
    "note",
    "load",
    "threads",
    "torch",
    "dali",
    "python",
    "commit",
)


def render(path: Path, *, seed: int = 0) -> None:
    """A textured background that pans, three moving discs and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 24, 64), dtype=np.float32))
    wide = torch.nn.functional.interpolate(coarse, (HEIGHT, 2 * WIDTH), mode="bicubic")[0]
    fine = rng.random((HEIGHT, 2 * WIDTH, 3), dtype=np.float32)
    texture = wide.permute(1, 2, 0).numpy() * 0.8 + fine * 0.2
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def frames() -> Iterator[np.ndarray]:
        for t in range(FRAMES):
            shift = t * WIDTH // FRAMES
            picture = texture[:, shift : shift + WIDTH] * 200 + rng.integers(0, 6)
            for disc in range(3):
                y = HEIGHT * (0.5 + 0.35 * np.sin(0.05 * t + disc))
                x = WIDTH * (0.5 + 0.4 * np.cos(0.031 * t * (disc + 1)))
                picture[(rows - y) ** 2 + (columns - x) ** 2 < (30 + 10 * disc) ** 2] = 60 * disc
            yield picture.clip(0, 255).astype(np.uint8)

    write_video(path, frames(), 30)


def work(info: VideoInfo, length: int, augmented: bool, clips: int) -> list[Reading]:
    """Random sorted frames, one clip per reading."""
    rng = np.random.default_rng(length)
    side = decode_side(SIZE)
    height, width = scaled_size(info.height, info.width, side)
    out = []
    for _ in range(clips):
        frames = np.sort(rng.permutation(info.frames)[:length])
        draw = eval_draw(height, width)
        if augmented:
            draw = draw_clip(height, width, Augmentation(size=SIZE), rng)
        out.append(Reading(info.path, info.height, info.width, side, (Clip(frames, draw),)))
    return out


Run = Callable[[list[Reading]], Iterator[torch.Tensor]]


def providers(info: VideoInfo, threads: int, augmented: bool) -> dict[str, Run | str]:
    """fastseq's engines, then the others; a string gives the reason why one is missing."""
    from benchmarks import video_peers as peers

    spec = Augmentation(size=SIZE) if augmented else None

    def engine(name: str) -> Run | str:
        try:
            made, _ = open_engine(
                name,
                [info],
                SIZE,
                device="cuda" if name == "dali-gpu" else "cpu",
                workers=threads,
            )
        except (ImportError, RuntimeError, ValueError) as error:
            return str(error)

        def run(readings: list[Reading]) -> Iterator[torch.Tensor]:
            stop = len(readings) // BATCH
            yield from made.batches(lambda k: readings[k * BATCH : (k + 1) * BATCH], 0, stop)
            made.close()

        return run

    def peer(dataset: Callable[..., Any]) -> Run:
        return lambda readings: peers.in_workers(dataset(readings, SIZE, spec), threads)

    return {
        "fastseq dali-gpu": engine("dali-gpu"),
        "fastseq dali-cpu": engine("dali-cpu"),
        "fastseq pyav": engine("pyav"),
        DECODING: peer(peers.Decoding),
        "PyAV alone": peer(peers.PlainPyAV),
        "CARL_code": peer(peers.Released),
    }


def clips_per_second(run: Run, readings: list[Reading], threads: int) -> float:
    """Rate in steady state: from each worker's first batch to the last batch."""
    started = count = 0.0
    for number, batch in enumerate(run(readings), 1):
        if batch.device.type == "cuda":
            torch.cuda.synchronize()
        if number == threads:
            started = time.perf_counter()
        elif number > threads:
            count += len(batch)
    return count / (time.perf_counter() - started)


def measure(
    path: Path,
    length: int,
    *,
    rounds: int = 3,
    seconds: float = 4.0,
    threads: int | None = None,
) -> list[dict[str, str]]:
    """Rows for clips of `length` frames of a file, with and without augmentation, all in turns."""
    threads = threads or len(os.sched_getaffinity(0))
    info = probe(path)
    calls, notes = {}, {}
    for augmented in (False, True):
        for name, run in providers(info, threads, augmented).items():
            if isinstance(run, str):
                notes[name, augmented] = run
                continue
            # Warm-up; its rate determines how many clips a sample needs.
            turn = threads * (BATCH if name.startswith("fastseq") else 1)
            first = clips_per_second(run, work(info, length, augmented, 2 * turn), threads)
            clips = turn * (1 + max(1, round(first * seconds / turn)))
            calls[name, augmented] = run, work(info, length, augmented, clips)
    rates: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, (run, readings) in calls.items():
            rates[key].append(clips_per_second(run, readings, threads))
    return _rows(info, length, rates, notes, threads)


def _rows(
    info: VideoInfo, length: int, rates: dict, notes: dict, threads: int
) -> list[dict[str, str]]:
    from fastseq.video.engines.choose import dali_version

    device = "cuda" if torch.cuda.is_available() else "cpu"
    common = {
        **{k: v for k, v in results.environment(device).items() if k in COLUMNS},
        "threads": str(threads),
        "dali": dali_version() or "",
        "clip": f"{Path(info.path).stem}, {info.frames} frames, {info.height} x {info.width}, "
        f"{Path(info.path).stat().st_size / 2**10:.0f} KiB of {info.codec}",
        "frames": str(length),
    }
    rows = []
    for name, augmented in [*rates, *notes]:
        row = common | {"provider": name, "augmentation": "yes" if augmented else "no"}
        if (name, augmented) in rates:
            mine = rates[name, augmented]
            ours = [v for (n, a), v in rates.items() if a == augmented and n.startswith("fastseq")]
            best = max(ours, key=median)
            row |= {
                "clips_per_s": f"{median(mine):.3g}",
                "frames_per_s": f"{median(mine) * length:.4g}",
                "ratio": f"{median(a / b for a, b in zip(best, mine, strict=True)):.3g}",
                "rounds": str(len(mine)),
            }
            if name == "fastseq pyav":
                share = median(mine) / median(rates[DECODING, augmented])
                row["decode_share"] = f"{share:.2f}"
            if augmented and name != DECODING:
                share = 1 - median(mine) / median(rates[name, False])
                row["augmentation_share"] = f"{max(share, 0):.2f}"
        else:
            row["note"] = notes[name, augmented]
        rows.append(row)
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """One table for each file."""
    parts = []
    for clip in dict.fromkeys(row["clip"] for row in rows):
        parts.append(f"{clip}:\n\n{_table([row for row in rows if row['clip'] == clip])}")
    missing = dict.fromkeys(f"- {r['provider']}: {r['note']}" for r in rows if r.get("note"))
    return "\n\n".join([*parts, "\n".join(missing)]).rstrip()


def _table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| frames | augmented | reader | clips/s | frames/s | best fastseq is faster by | "
        "decoding's share | augmentation's share |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        if row.get("clips_per_s"):
            lines.append(
                f"| {row['frames']} | {row['augmentation']} | {row['provider']} | "
                f"{row['clips_per_s']} | {row['frames_per_s']} | {row['ratio']}x | "
                f"{row.get('decode_share') or '-'} | {row.get('augmentation_share') or '-'} |"
            )
    return "\n".join(lines)


def write(rows: list[dict[str, str]], folder: Path) -> Path:
    """Write results/<device>/video.csv and .md anew."""
    import csv

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = folder / results.slug(device) / "video.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    first = rows[0]
    path.with_suffix(".md").write_text(
        f"# Reading clips on {first['device']}\n\n"
        f"Random sorted frames of a file (`rendered`: drawn by the benchmark, x264's default key "
        f"frames) to {SIZE} x {SIZE} bytes; batches of {BATCH} clips, "
        f"{first['threads']} threads or processes; torch {first['torch']}, DALI "
        f"{first['dali'] or 'not installed'}, Python {first['python']}; commit {first['commit']}; "
        f"load average before {first['load']}. Written by `python -m benchmarks.video`.\n\n"
        f"{table(rows)}\n"
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__)
    parser.add_argument(
        "--frames", type=int, action="append", help="frames per clip; repeatable (default: 32, 240)"
    )
    parser.add_argument(
        "--video", type=Path, action="append", help="also measure on this file; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds per sample (default: 4)"
    )
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    for path in options.video or ():  # checked now, not after minutes on the rendered file
        try:
            found = probe(path).frames
        except VideoError as error:
            parser.error(f"--video: {error}")
        if found < max(options.frames or LENGTHS):
            parser.error(f"--video: {path} has {found} frames, fewer than a clip; see --frames")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder) / "rendered.mp4"
        render(rendered)
        for path in (rendered, *(options.video or ())):
            for length in options.frames or LENGTHS:
                rows += measure(path, length, rounds=options.rounds, seconds=options.seconds)
    print(table(rows))
    print(write(rows, options.results))


if __name__ == "__main__":
    main()
