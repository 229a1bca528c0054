"""Write the trained weights to one file: `python -m training.export RUN OUT.safetensors`.

Tensors are named as in the model's state dict. A .safetensors file also holds the run's
configuration, as YAML under "config" in its metadata, and the names of a classifier's classes, as
JSON under "classes"; safetensors.torch.load_file reads the weights without running code. A .pt or
.pth file holds the state dict alone, for torch.load(weights_only=True).

--layout torchvision, mmaction2 or timm writes the backbone, and a classifier of actions, under the
names of that project; model.weights reads such a file too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.evaluation.stored import add_checkpoint
from training.runs.weight_writers import (
    LAYOUTS,
    OWN,
    export_weights,
    writers,
    written_whole,
)
from training.support.command import UserError, make_folder, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument("out", type=Path, help="file to write, such as model.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default=OWN, help="whose names the tensors get (default: own)"
    )
    add_checkpoint(parser)
    args = parser.parse_args(argv)

    def command() -> None:
        from training.loop.labels import read_classes
        from training.runs.model import load_run

        if args.out.is_file() and not args.overwrite:
            raise UserError(f"{args.out} exists already; --overwrite replaces it")
        if args.out.is_dir():
            raise UserError(f"{args.out} is a folder; name a file, such as model.safetensors")
        known = writers(args.layout)
        writer = known.get(args.out.suffix.lower())
        if writer is None:
            raise UserError(
                f"{args.out} ends in {args.out.suffix or 'nothing'}; expected a file name that "
                f"ends in one of {', '.join(known)} for --layout {args.layout}"
            )
        model, cfg = load_run(args.run, checkpoint=args.checkpoint)
        exported = None if args.layout == OWN else export_weights(model, cfg, args.layout)
        weights = model.state_dict() if exported is None else exported.weights
        classes = [", ".join(one) for one in read_classes(args.run) or ()]
        if exported is not None and exported.classes != len(classes):
            classes = []  # of a head that is left out
        make_folder(args.out.parent)
        with written_whole(args.out, weights):
            writer(args.out, weights, cfg, classes)
        size = args.out.stat().st_size / 1e6
        print(f"written: {args.out}, {len(weights)} tensors, {size:.1f} MB")
        if classes:
            print(f"classes, in the order of the scores: {'; '.join(classes)}")
        if exported is None:
            return
        whole = 255 if args.layout == "mmaction2" else 1  # its data_preprocessor
        mean, std = ([round(x * whole, 4) for x in pixels] for pixels in exported.pixels)
        print(f"network of {args.layout}: {exported.network}")
        if not exported.classes and args.layout != "mmaction2":
            print("the file has no classifier: load_state_dict(..., strict=False)")
        print(f"its pixels: RGB in 0 to {whole}, minus {mean}, divided by {std}")
        if exported.left_out:
            parts = ", ".join(f"{part} ({count})" for part, count in exported.left_out.items())
            print(f"left out, because {args.layout} has no counterpart: {parts}")
        for note in exported.notes:
            print(f"differs: {note}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
