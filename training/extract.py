"""Save the embedding of every frame: `python -m training.extract RUN --out DIR`.

One npz per video, under its own path: embeddings (frames, E) float32 of unit length, phases if
the video has labels, id, action, split and fps. Read one with numpy.load.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.evaluation.cli import UserError, make_folder, open_index, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.extract", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: the run's own)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(argv)

    def command() -> None:
        from training.evaluation.embed import embed_records, save_embeddings
        from training.evaluation.encoders import load_encoder

        encode, cfg = load_encoder(args.run)
        index = open_index(cfg, args.folder)
        if not index.videos:
            raise UserError(f"{index.folder} has no usable videos; see its fastseq_index.json")
        make_folder(args.out)
        for record in index.videos:  # one at a time: a long run keeps what it has done
            (videos,) = embed_records({"trained": encode}, [record], cfg, progress=False).values()
            save_embeddings(args.out, videos)
        print(f"{len(index.videos)} files written to {args.out}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
