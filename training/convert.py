"""Make a run directory of a weights file, without training: python -m training.convert RECIPE."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from training.support.command import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.convert",
        description="Make a run directory of a weights file, without training. evaluate, retrieve, "
        "extract, align and export then work on released weights.",
        epilog="Example: python -m training.convert recipes/vclr.yaml model.weights=current.pth "
        "model.weights_parts=all data.folder=videos --out runs/released",
    )
    parser.add_argument(
        "recipe", help="recipe with the file's network, relative to the current folder or training/"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="model.weights, and other keys"
    )
    parser.add_argument("--out", type=Path, required=True, help="run directory to write")
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command(lambda: _convert(args))


def _convert(args: argparse.Namespace) -> None:
    from training.recipe.load import load_config, make_paths_absolute
    from training.runs.model import initial_model
    from training.runs.weight_writers import write_run, written_whole

    if args.out.exists():
        raise UserError(f"{args.out} exists already; move it, or choose another --out")
    cfg = load_config(args.recipe, args.overrides)
    if not cfg.model.weights:
        raise UserError(
            "model.weights is null: expected a weights file, model.weights=FILE; without one the "
            "run would have random weights"
        )
    make_paths_absolute(cfg)
    try:
        model = initial_model(cfg)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    weights = model.state_dict()
    with written_whole(args.out, weights):
        write_run(args.out, weights, cfg)
    parts = Counter(name.partition(".")[0] for name in weights)
    text = ", ".join(f"{part} ({count})" for part, count in parts.items())
    print(f"written: {args.out}, {len(weights)} tensors: {text}")


if __name__ == "__main__":
    sys.exit(main())
