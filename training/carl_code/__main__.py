"""Convert files of CARL's released code: `python -m training.carl_code WHAT ...`.

recipe converts a configuration to a recipe; labels converts train.pkl and val.pkl to labels.json;
checkpoint converts a checkpoint to a run directory for evaluate, align, retrieve, extract and
export. Example: python -m training.carl_code recipe config.yml --out mine.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.support.command import UserError, run_command
from training.support.files import replacing


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.carl_code", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    one = commands.add_parser("recipe", help="convert configs/*.yml to a recipe")
    one.add_argument("config", type=Path, help="a configuration of CARL_code")
    one.add_argument("--out", type=Path, required=True, help="recipe to write, such as mine.yaml")
    one = commands.add_parser("labels", help="convert train.pkl and val.pkl to labels.json")
    one.add_argument("folder", type=Path, help="folder with the videos")
    one.add_argument(
        "--train", type=Path, nargs="+", required=True, metavar="PKL", help="train.pkl"
    )
    one.add_argument("--test", type=Path, nargs="+", default=[], metavar="PKL", help="val.pkl")
    one.add_argument("--out", type=Path, help="labels file to write (default: FOLDER/labels.json)")
    one = commands.add_parser("checkpoint", help="convert checkpoint_epoch_*.pth to a run")
    one.add_argument("file", type=Path, help="a checkpoint of CARL_code")
    one.add_argument("--out", type=Path, required=True, help="run directory to write")
    one.add_argument("--folder", default="", help="prepared folder, data.folder of the run")
    args = parser.parse_args(argv)
    return run_command(lambda: _COMMANDS[args.what](args))


def _recipe(args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from training.carl_code.recipe import convert_config, flatten

    try:
        config = OmegaConf.to_container(OmegaConf.load(args.config))
    except OSError as error:
        raise UserError(f"{args.config}: {error.strerror}") from error
    except Exception as error:
        raise UserError(f"{args.config}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{args.config} has no sections with keys; expected a YAML file of CARL_code"
        )
    converted = convert_config(config)
    if len(converted.unknown) == len(flatten(config)):
        raise UserError(f"{args.config} is not a configuration of CARL_code: all keys are unknown")
    _check(converted.recipe)
    _refuse_existing(args.out)
    args.out.write_text(f"# From {args.config.name} of CARL_code.\n{_yaml(converted.recipe)}")
    _report(converted)
    print(f"written: {args.out}")


def _labels(args: argparse.Namespace) -> None:
    from training.carl_code.labels import convert_labels

    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is not a folder")
    out = args.out or args.folder / "labels.json"
    _refuse_existing(out)
    labels = convert_labels({"train": args.train, "test": args.test}, args.folder)
    missing = [name for name in labels["videos"] if not (args.folder / name).is_file()]
    with replacing(out) as partial:
        partial.write_text(json.dumps(labels) + "\n")
    print(f"written: {out}: {len(labels['videos'])} videos, actions {', '.join(labels['classes'])}")
    if missing:
        print(
            f"missing in {args.folder}: {len(missing)} videos, such as {missing[0]}; remove their "
            "entries or add the files before `python -m training.prepare`"
        )


def _checkpoint(args: argparse.Namespace) -> None:
    from training.carl_code.checkpoint import convert_checkpoint
    from training.models import build_model
    from training.runs.checkpoint import CheckpointError, load_weights
    from training.runs.weight_writers import write_run

    converted, weights = convert_checkpoint(args.file)
    cfg = _check(converted.recipe)
    cfg.data.folder = str(Path(args.folder).resolve()) if args.folder else ""
    model = build_model(cfg, load_weights=False)
    if not any(name.startswith("projection.") for name in weights):  # trained without it
        state = model.state_dict()
        weights |= {name: value for name, value in state.items() if name.startswith("projection.")}
    try:
        load_weights(model, {"model": weights}, args.file)
    except CheckpointError as error:
        raise UserError(f"{args.file}: {error}") from error
    _refuse_existing(args.out)
    write_run(args.out, weights, cfg)
    _report(converted)
    print(f"written: {args.out}, {len(weights)} tensors, also as {args.out / 'model.safetensors'}")


def _check(recipe: dict[str, Any]) -> Any:
    """The full configuration; ConfigError for a value that a key does not accept."""
    import tempfile

    from training.recipe.load import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "converted.yaml")
        path.write_text(_yaml(recipe))
        return load_config(path)


def _yaml(recipe: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe))


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; move it, or choose another --out")


def _report(converted: Any) -> None:
    if converted.ignored:
        print(f"without a counterpart, left out: {', '.join(converted.ignored)}")
    if converted.unknown:
        print(f"unknown, left out: {', '.join(converted.unknown)}", file=sys.stderr)


_COMMANDS = {"recipe": _recipe, "labels": _labels, "checkpoint": _checkpoint}


if __name__ == "__main__":
    sys.exit(main())
