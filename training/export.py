"""The trained weights as one safetensors file: `python -m training.export RUN OUT.safetensors`.

Names are those of the model's state dict; the metadata holds the run's configuration as YAML under
"config". safetensors.torch.load_file reads it, from Python or elsewhere, and runs no code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.cli import UserError, make_folder, run_command

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument("out", type=Path, help="file to write, such as model.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)

    def command() -> None:
        from safetensors import SafetensorError

        from training.checkpoint import CheckpointError
        from training.run import load_run

        if args.out.is_file() and not args.overwrite:
            raise UserError(f"{args.out} exists already; --overwrite replaces it")
        if args.out.is_dir():
            raise UserError(f"{args.out} is a folder; give a file, such as model.safetensors")
        try:
            model, cfg = load_run(args.run)
        except CheckpointError as error:
            raise UserError(str(error)) from error
        weights = model.state_dict()
        make_folder(args.out.parent)
        try:
            write_safetensors(args.out, weights, cfg)
        except SafetensorError as error:  # a full disk, for one
            raise UserError(f"{args.out} was not written: {error}") from error
        size = args.out.stat().st_size / 1e6
        print(f"written: {args.out}, {len(weights)} tensors, {size:.1f} MB")

    return run_command(command)


def write_safetensors(path: Path, weights: Mapping[str, torch.Tensor], cfg: Any) -> None:
    """Write weights and configuration, atomically."""
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(
            {name: value.contiguous() for name, value in weights.items()},
            partial,
            metadata={"config": OmegaConf.to_yaml(cfg, resolve=True)},
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
