"""Peak memory of a training step by the length of its clips: `python -m training.memory RECIPE`.

Measure the peak memory of a training step for clips of several lengths T, each in a separate
process on random frames, and fit a line a + b T to the peaks. Writes memory.json and memory.png to
--out. With data.clips=tuples, segments or blocks, T is data.tuple_frames. With --plain, also
measure the same step done the plain way: all frames at once, nothing recomputed, dense losses, one
rank. With data.split_time=R each other step runs on R ranks of this machine, and the peak is that
of the rank with the highest one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.studies.memory_fit import equation, fit
from training.support.command import UserError, run_command

WAYS = ("recipe", "plain")
CARDS = (16, 24, 80, 141)  # GB
# malloc raises these thresholds when large blocks are freed, and then keeps freed memory: the
# measured peak would depend on the process's history. With fixed thresholds, every larger block is
# returned to the system immediately.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


class MeasurementError(RuntimeError):
    """A step failed for a reason other than lack of memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a step failed, 2 wrong request, 130 interrupted."""
    args = parse_arguments(argv)
    return run_command(lambda: _run(args), needs="training")


def _run(args: argparse.Namespace) -> int:
    from training.recipe.load import load_config

    # All requests are checked before the first is measured.
    fit_from(args, load_config(args.recipe, args.overrides))
    requests = {
        (way, frames): request(args, way, frames)
        for frames in args.frames
        for way in WAYS[: 1 + args.plain]
    }
    args.out.mkdir(parents=True, exist_ok=True)
    runs = []
    try:
        for (way, _), asked in requests.items():
            runs.append({"way": way} | measure(asked))
            print(describe(runs[-1]), flush=True)
    except MeasurementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = summary(args, runs)
    (args.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(conclusion(result))
    from training.studies.memory_picture import draw

    draw(result, args.out / "memory.png")
    print(f"written to {args.out}: memory.json, memory.png")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.memory",
        description=__doc__.partition("\n")[2],
        epilog="Example: python -m training.memory recipes/carl.yaml data.batch_size=1 "
        "augmentation.size=64 --frames 80,160,240,480,960,1920 --plain",
    )
    parser.add_argument(
        "recipe", help="recipe, a YAML file, relative to the current folder or to training/"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="values that replace those of the recipe",
    )
    parser.add_argument(
        "--frames",
        type=_lengths,
        default=[80, 160, 240, 480, 960, 1920],
        metavar="T,T,...",
        help="frames of a clip (default: 80,160,240,480,960,1920)",
    )
    parser.add_argument("--plain", action="store_true", help="also measure the plain way")
    parser.add_argument(
        "--fit-from",
        type=int,
        metavar="T",
        help="shortest clip in the fit; below it the scratch memory of one chunk dominates "
        "(default: 240; with data.clips=tuples, segments or blocks the shortest of --frames)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("memory"), help="folder to write to (default: memory)"
    )
    args = parser.parse_intermixed_args(argv)
    return args


def fit_from(args: argparse.Namespace, cfg: Any) -> int:
    """The shortest clip in the fit; UserError if fewer than two are as long."""
    shortest = 240 if _length_key(cfg) == "data.num_frames" else min(args.frames)
    shortest = shortest if args.fit_from is None else args.fit_from
    if sum(frames >= shortest for frames in args.frames) < 2:
        raise UserError(
            f"--frames: a line needs two lengths of at least --fit-from {shortest}, got "
            f"{','.join(map(str, args.frames))}"
        )
    return shortest


def _lengths(text: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 2:
        raise argparse.ArgumentTypeError(
            f"expected numbers of at least 2, such as 240,480, got {text}"
        )
    return lengths


def request(args: argparse.Namespace, way: str, frames: int) -> dict[str, Any]:
    """The input of `training.studies.memory_step`; ConfigError if the recipe does not allow it."""
    from training.recipe.load import ConfigError, load_config, loss_terms
    from training.recipe.ranks import check_ranks

    key = _length_key(load_config(args.recipe, args.overrides))
    overrides = [*args.overrides, f"{key}={frames}"]
    cfg = load_config(args.recipe, overrides)
    for name, _, options in loss_terms(cfg.loss):
        if "classes" in options and options["classes"] is None:
            raise ConfigError(
                f"loss.{name}.classes is null, and no labels are read here to count them: set "
                f"loss.{name}.classes, such as 100"
            )
    if way == "plain":
        overrides += ["train.chunk_frames=0", "train.checkpointing=false", "data.split_time=1"]
        overrides += [
            f"loss.{name}.backend=reference"
            for name, _, options in loss_terms(cfg.loss)
            if "backend" in options
        ]
        cfg = load_config(args.recipe, overrides)
    ranks = cfg.data.split_time
    check_ranks(cfg, ranks)
    return {"recipe": args.recipe, "overrides": overrides, "frames": frames, "ranks": ranks}


def _length_key(cfg: Any) -> str:
    """The key of the recipe that sets T."""
    from training.recipe.schema import SHORT_CLIPS

    return f"data.{'tuple' if cfg.data.clips in SHORT_CLIPS else 'num'}_frames"


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Measure one step in a new process for each of the ``ranks`` that share a clip.

    Returns {"frames", "error"} if memory does not suffice.
    """
    ranks = asked["ranks"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [
            *(sys.executable, *(torchrun if ranks > 1 else [])),
            *("-m", "training.studies.memory_step"),
        ],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ | MALLOC,
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])  # gloo prints lines before it
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    # What torchrun itself prints comes last.
    lines = [line for line in lines if line.startswith("[rank")] or lines
    no_memory = ("out of memory", "can't allocate memory", "MemoryError")
    killed = done.returncode == -signal.SIGKILL or (ranks > 1 and "SIGKILL" in done.stderr)
    if killed or any(words in lines[-1] for words in no_memory):
        return {"frames": asked["frames"], "error": "out of memory"}
    raise MeasurementError(f"T = {asked['frames']}: {lines[-1]}")


def summary(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All measurements, the fits, and the longest clips that they predict."""
    from training.recipe.load import load_config

    cfg = load_config(args.recipe, args.overrides)
    shortest = fit_from(args, cfg)
    fits = {
        way: fit([run for run in runs if run["way"] == way and run["frames"] >= shortest])
        for way in WAYS[: 1 + args.plain]
    }
    ours, plain = fits["recipe"], fits.get("plain")
    model = next((run["model"] for run in runs if "model" in run), 0)
    rises = ours is not None and ours["b"] > 0  # noise can hide very small steps
    longest = {}
    if rises:
        longest = {str(card): int((card * 1e9 - model - ours["a"]) // ours["b"]) for card in CARDS}
    return {
        "recipe": args.recipe,
        "overrides": args.overrides,
        "clips": cfg.data.batch_size * _clips_of_item(cfg),
        "ranks": cfg.data.split_time,
        "runs": runs,
        "fits": fits,
        "slope_ratio": plain["b"] / ours["b"] if rises and plain else None,
        "longest": longest,
    }


def _clips_of_item(cfg: Any) -> int:
    from training.recipe.schema import SHORT_CLIPS

    per_segment, more = SHORT_CLIPS.get(cfg.data.clips, (0, 2))
    return per_segment * cfg.data.segments + more


def describe(run: dict[str, Any]) -> str:
    start = f"{run['way']:7} T = {run['frames']:5}"
    if "error" in run:
        return f"{start}   {run['error']}"
    parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in run["parts"].items())
    rest = (run["peak"] - sum(run["parts"].values())) / 1e6
    return (
        f"{start}   {run['peak'] / 1e6:7.0f} MB   {run['seconds']:7.2f} s   (MB: {parts}, "
        f"scratch and gradients {rest:.0f})"
    )


def conclusion(result: dict[str, Any]) -> str:
    measured = [run for run in result["runs"] if "peak" in run]
    if not measured:
        return "nothing could be measured: memory did not suffice for any length; try shorter clips"
    one = measured[0]
    where = f"{one['device']}, {one['precision']}, torch {one['torch']}"
    on_cpu = one["device"] == "cpu"
    counted = "resident memory" if on_cpu else "PyTorch's allocator"
    threads = f", threads: {one['threads']}" if on_cpu else ""
    lines = [
        f"{where}{threads}; peak of {counted} above the model and the optimizer's state "
        f"({one['model'] / 1e6:.0f} MB), {result['clips']} clips of T frames"
        + (f" over {result['ranks']} ranks" if result["ranks"] > 1 else "")
    ]
    for way, line in result["fits"].items():
        if line is None:
            lines.append(f"{way}: too few lengths could be measured for a fit")
            continue
        lines.append(f"{way}: peak = {equation(line)} from T = {line['from']:.0f}")
    if result["slope_ratio"]:
        lines.append(f"plain / recipe, by b: {result['slope_ratio']:.1f}")
    if result["longest"]:
        longest = ", ".join(f"{card} GB: {t}" for card, t in result["longest"].items())
        note = (
            "from this CPU's figures; a GPU's differ"
            if on_cpu
            else "without CUDA's context and fragmentation"
        )
        lines.append(f"longest T by the fit ({note}): {longest}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
