"""Compare losses on generated videos: `python -m training.compare --seeds 3`.

Trains the same per-frame encoder for the same number of steps with each method and seed, evaluates
by CARL's protocol, and writes a table of means and spreads to OUT/comparison.md. Interrupted, it
continues where it was: finished (method, seed) pairs are kept in OUT/seed_N/METHOD.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.cli import write_json

RECIPE = "recipes/compare.yaml"
UNTRAINED_STEPS = (
    50  # of batch-norm statistics at lr 0: 0.9^50, what is left of the start, is 0.5 %
)

# CARL's variance is 10 frames^2 where neighbouring frames of a view are 1.25 frames apart (crops of
# 1 to 1.5 T frames). Here they are 6.5 apart on average (0.65 of 200 frames, T = 20), so the same
# Gaussian in units of that gap has 10 (6.5 / 1.25)^2 = 270 frames^2. Not tuned.
VARIANCE = 270.0
REACH = math.sqrt(206 * VARIANCE)  # of SCL's Gaussian; the baseline counts the same frames

_VIEWS = ["data.clips=views", "data.sampling=random"]
_PAIRS = ["data.clips=videos", "data.sampling=segment"]
METHODS = {
    "untrained": ["optim.lr=0", *_VIEWS],
    "soft_dtw": ["loss.soft_dtw.weight=1", *_PAIRS],
    "lav": ["loss.lav.weight=1", *_PAIRS],
    "tcc": ["loss.tcc.weight=1", "data.clips=videos", "data.sampling=offset_uniform"],
    "tcn": ["loss.tcn.weight=1", "data.clips=views", "data.sampling=anchors"],
    "nearest": ["loss.nearest.weight=1", f"loss.nearest.reach={REACH:.4f}", *_VIEWS],
    "carl": ["loss.scl.weight=1", f"loss.scl.variance={VARIANCE}", *_VIEWS],
}
TIME_INDEX = "time_index"
TITLES = {
    TIME_INDEX: "time index only",
    "untrained": "untrained",
    "soft_dtw": "Soft-DTW alone",
    "lav": "LAV",
    "tcc": "TCC",
    "tcn": "TCN",
    "nearest": "contrastive baseline",
    "carl": "CARL (SCL)",
}
COLUMNS = {
    "classification": "classification",
    "progression": "progression",
    "kendalls_tau": "tau",
    "ap_at_5": "AP@5",
    "pairwise_distance": "spread",
    "effective_rank": "effective rank",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every method")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="default: %(default)s")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds 0 to N-1, each with videos of its own (default: 3)",
    )
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=list(METHODS),
        metavar="A,B,...",
        help=f"of {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument("--train-videos", type=int, default=40, help="per action (default: 40)")
    parser.add_argument("--test-videos", type=int, default=12, help="per action (default: 12)")
    options = parser.parse_intermixed_args(argv)
    for name in ("seeds", "steps", "train_videos", "test_videos"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def _methods(text: str) -> list[str]:
    names = text.split(",")
    wrong = [name for name in names if name not in METHODS]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r}; expected some of {', '.join(METHODS)}")
    return names


def _run(options: argparse.Namespace) -> int:
    try:  # only now, so that --help need not wait for torch
        from training import prepare
        from training.config import ConfigError, load_config
        from training.demo.render import render_dataset
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("fastseq", "training"):
            raise
        print(f'error: {error}; it needs: pip install "fastseq[train]"', file=sys.stderr)
        return 2

    began = time.perf_counter()
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        for method in options.methods:
            load_config(RECIPE, _overrides(method, options))  # before anything is rendered
        for seed in range(options.seeds):
            folder = options.out / f"seed_{seed}"
            videos = folder / "videos"
            render_dataset(
                videos,
                seed=seed,
                train_per_action=options.train_videos,
                test_per_action=options.test_videos,
            )
            status = prepare.main([str(videos)])
            if status:
                return status
            results.setdefault(TIME_INDEX, []).append(_time_index(videos, folder))
            for method in options.methods:
                result = _one(method, seed, folder, options)
                if result is None:
                    return 1
                results.setdefault(method, []).append(result)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = markdown(results)
    (options.out / "comparison.md").write_text(text)
    print(f"\n{text}\nall done in {(time.perf_counter() - began) / 60:.1f} minutes")
    print(f"written to {options.out / 'comparison.md'}")
    return 0


def _overrides(method: str, options: argparse.Namespace) -> list[str]:
    steps = [] if options.steps is None else [f"train.steps={options.steps}"]
    if method == "untrained":
        steps = [f"train.steps={min(options.steps or UNTRAINED_STEPS, UNTRAINED_STEPS)}"]
    return [*options.overrides, *METHODS[method], *steps]


def _one(method: str, seed: int, folder: Path, options: argparse.Namespace) -> dict | None:
    """The result of one method and seed, from an earlier call if it is there."""
    from training import train
    from training.config import ConfigError, differences, load_config

    run, done = folder / method, folder / method / "result.json"
    overrides = [
        f"data.folder={(folder / 'videos').resolve()}",
        f"train.run_dir={run}",
        f"train.seed={seed}",
        *_overrides(method, options),
    ]
    if done.is_file():
        changed = (
            set(differences(load_config(RECIPE, overrides), load_config(run / "config.yaml")))
            - train.MAY_CHANGE
        )
        if changed:
            raise ConfigError(
                f"{run} is the result of other values of {', '.join(sorted(changed))}; give those, "
                "another --out, or remove it"
            )
        print(f"\n== {TITLES[method]}, seed {seed}: there already")
        return json.loads(done.read_text())
    print(f"\n== {TITLES[method]}, seed {seed}", flush=True)
    resume = (run / "config.yaml").is_file()
    if run.exists() and not resume:
        shutil.rmtree(run)
    status = train.main([RECIPE, *overrides, *(["--resume"] if resume else [])])
    if status in (130, 143):
        raise KeyboardInterrupt
    if status:
        return None
    result = _evaluate(run)
    write_json(done, result)
    return result


def _evaluate(run: Path) -> dict[str, Any]:
    from training.data.index import load_index
    from training.evaluation.embed import embed_records
    from training.evaluation.encoders import load_encoder
    from training.runlog import read_log

    encode, cfg = load_encoder(run)
    index = load_index(cfg.data.folder)
    embedded = embed_records({"it": encode}, index.videos, cfg, progress=False)["it"]
    last = read_log(run)[-1]
    return _scores(embedded, index) | {"seconds": last["seconds"], "log": last}


def _time_index(videos: Path, folder: Path) -> dict[str, Any]:
    from training.data.index import load_index
    from training.evaluation.baselines import time_index

    index = load_index(videos)
    result = _scores(time_index(index.videos), index)
    write_json(folder / "time_index.json", result)
    return result


def _scores(embedded: Sequence[Any], index: Any) -> dict[str, Any]:
    """CARL's metrics, and the spread of the embeddings of the test videos."""
    import numpy as np
    import torch

    from training.evaluation.protocol import evaluate_embeddings
    from training.runlog import collapse_measures

    split = {
        name: [video for video in embedded if video.record.split == name]
        for name in ("train", "test")
    }
    row = evaluate_embeddings(split["train"], split["test"], index.classes)
    rows = np.concatenate([video.embeddings for video in split["test"]])
    spread = collapse_measures(torch.from_numpy(rows), most=1024)
    return {"metrics": row["metrics"] | spread, "left_out": dict(row["left_out"])}


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table, and whether the orderings that the papers report hold here."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in (name for name in TITLES if name in results):
        cells = [_cell([_value(one, key) for one in results[method]]) for key in COLUMNS]
        lines.append(f"| {TITLES[method]} | " + " | ".join(cells) + " |")
    seeds = len(next(iter(results.values())))
    lines += ["", f"Mean and standard deviation over {seeds} seed{'s' if seeds > 1 else ''}.", ""]
    return "\n".join(lines + [f"- {claim}" for claim in claims(results)]) + "\n"


def claims(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Each expected ordering with the number of seeds in which it holds."""
    out = []
    for low, high in (("soft_dtw", "untrained"), ("soft_dtw", "lav")):
        if low in results and high in results:
            pairs = _pairs(results, low, high, "pairwise_distance")
            held = sum(a < 0.5 * b for a, b in pairs)
            ratios = ", ".join(f"{a / b:.2f}" for a, b in pairs)
            out.append(
                f"Spread of {TITLES[low]} below half of {TITLES[high]}: in {held} of {len(pairs)} "
                f"seeds (ratios {ratios})."
            )
    if "lav" in results and "untrained" in results:
        pairs = _pairs(results, "lav", "untrained", "pairwise_distance")
        held = sum(a > 0.5 * b for a, b in pairs)
        ratios = ", ".join(f"{a / b:.2f}" for a, b in pairs)
        out.append(
            f"Spread of LAV above half of untrained: in {held} of {len(pairs)} seeds "
            f"(ratios {ratios})."
        )
    if "carl" in results and "nearest" in results:
        for key in ("classification", "progression", "kendalls_tau", "ap_at_5"):
            pairs = _pairs(results, "carl", "nearest", key)
            held = sum(a > b for a, b in pairs)
            gaps = ", ".join(f"{a - b:+.3f}" for a, b in pairs)
            out.append(
                f"CARL above its contrastive baseline in {COLUMNS[key]}: in {held} of {len(pairs)} "
                f"seeds ({gaps})."
            )
    return out


def _pairs(results: Mapping, a: str, b: str, key: str) -> list[tuple[float, float]]:
    return [
        (_value(one, key), _value(other, key))
        for one, other in zip(results[a], results[b], strict=True)
    ]


def _value(result: Mapping[str, Any], key: str) -> float:
    value = result["metrics"].get(key)
    return math.nan if value is None else value


def _cell(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    digits = 3 if abs(statistics.mean(known)) < 10 else 1
    text = f"{statistics.mean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


if __name__ == "__main__":
    sys.exit(main())
