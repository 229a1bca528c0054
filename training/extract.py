"""Save the embedding of every frame: `python -m training.extract RUN --out DIR`.

Writes one npz per video, DIR/VIDEO.npz. It holds embeddings (n, E) float32 of unit length, the
frame number of each (frames in the gaps of a damaged video are missing), phases if the video has
labels, id, action, split and fps. numpy.load reads it. Embeddings that RUN/embeddings has are
copied. After an interruption the same command continues: files that the same weights made of the
same videos are kept. A video that could not be read is embedded once it has been repaired. Example:
python -m training.extract runs/mine --out embeddings

--format bmn and gtad write what projects of temporal action localisation read: the embeddings
rescaled to --steps equally long steps, DIR/csv_mean_100/v_VIDEO.csv or DIR/v_VIDEO.npy, and the
segments of labels.json in DIR/anet_anno.json. VIDEO is the name of the video's file without folder
and ending. Each frame's embedding has a root mean square of 1 before a step's mean is computed.
Every file is written again; the embeddings are those of RUN/embeddings. The annotations are written
last: after an interruption they are missing, and the same command completes the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.folders import place, prepare
from training.evaluation.stored import add_checkpoint, add_no_store
from training.evaluation.videos import open_index
from training.support.command import (
    EXIT_STATUS,
    LeftOut,
    UserError,
    counted,
    make_folder,
    run_command,
)

if TYPE_CHECKING:
    from training.data.selection import Selection
    from training.evaluation.stored import RunEmbeddings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.extract", description=__doc__, epilog=EXIT_STATUS
    )
    parser.add_argument("run", type=Path, help="run directory of `python -m training.train`")
    parser.add_argument(
        "--folder", type=Path, help="prepared folder of videos (default: that of the run)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--format",
        choices=("npz", "bmn", "gtad"),
        default="npz",
        help="npz: the embedding of every frame; bmn: csv files of rescaled features, as mmaction2 "
        "reads them; gtad: npy files of them, as the BMN repository and forks of G-TAD for "
        "ActivityNet read them, but not G-TAD's published loader (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="T",
        help="bmn and gtad: steps of a video (default: 100, as both use)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write every file again")
    add_checkpoint(parser)
    add_no_store(parser)
    args = parser.parse_args(argv)
    if args.format == "npz" and args.steps is not None:
        parser.error("--steps applies to --format bmn and gtad; npz has every frame")
    args.steps = 100 if args.steps is None else args.steps
    if args.steps < 2:
        parser.error(f"--steps must be at least 2, got {args.steps}")

    def command() -> LeftOut:
        from training.evaluation.embed import has_embeddings, save_embeddings
        from training.evaluation.encoders import TRAINED
        from training.evaluation.stored import RunEmbeddings
        from training.runs.model import weights_name
        from training.support.distributed import run_on_all, start_evaluation

        start_evaluation()

        def open_all() -> tuple[RunEmbeddings, str, Selection]:
            embeddings = RunEmbeddings(
                args.run, checkpoint=args.checkpoint, folder=args.folder, store=not args.no_store
            )
            weights = weights_name(args.run, embeddings.weights["checkpoint"])
            if share := embeddings.cfg.model.backbone_share:  # may change without the weights
                weights += f" backbone_share={share:g}"
            index = open_index(embeddings.cfg, args.folder)
            if not index.videos:
                raise UserError(
                    f"{place(index)} has no video that can be read; {prepare(index)} says why"
                )
            make_folder(args.out)
            return embeddings, weights, index

        embeddings, weights, index = run_on_all(open_all)
        if args.format != "npz":
            return _write_localisation(args, embeddings, index)
        files = {record.id: args.out / f"{record.id}.npz" for record in index.videos}
        todo = [
            record
            for record in index.videos
            if args.overwrite or not has_embeddings(files[record.id], record, weights)
        ]
        left_out = LeftOut(len(index.bad))
        if not embeddings.share(todo, left_out):
            return left_out
        for made in embeddings.each(left_out.kept(todo), left_out):
            save_embeddings(files[made[TRAINED].record.id], made[TRAINED], weights)
        there = len(index.videos) - len(todo)
        were = "was" if there == 1 else "were"
        earlier = f", {there} {were} there already (--overwrite writes them again)" if there else ""
        written = counted(len(todo) - len(left_out.videos), "file")
        print(f"{written} written to {args.out}{earlier}")
        return left_out

    return run_command(command, several=True)


def _write_localisation(
    args: argparse.Namespace, embeddings: RunEmbeddings, index: Selection
) -> LeftOut:
    """Write rescaled features and the annotated segments, see `training.localisation.formats`."""
    from training.evaluation.encoders import TRAINED
    from training.localisation.annotations import (
        FILE_NAME,
        annotate,
        video_names,
        write_annotations,
    )
    from training.localisation.formats import feature_path, rescaled, write_features
    from training.support.distributed import run_on_all

    names = run_on_all(lambda: video_names(record.id for record in index.videos))
    left_out = LeftOut(len(index.bad))
    if not embeddings.share(index.videos, left_out):
        return left_out
    # An interrupted call may leave files of two runs; without annotations localise refuses them.
    (args.out / FILE_NAME).unlink(missing_ok=True)
    written, size = [], 0
    for made in embeddings.each(left_out.kept(index.videos), left_out):
        record = made[TRAINED].record
        video = annotate(record, index.classes, names[record.id])
        features = rescaled(made[TRAINED], args.steps)
        write_features(feature_path(args.out, args.format, args.steps, video.name), features)
        written.append(video)
        size = features.shape[1]
    files = write_annotations(args.out, written)
    segments = sum(len(video.segments) for video in written)
    without = sum(not len(video.segments) for video in written)
    print(
        f"{counted(len(written), 'video')} of T = {args.steps} steps and E = {size} features "
        f"written to {args.out}, {counted(segments, 'segment')} in {', '.join(files)}"
    )
    if without:
        print(f"{counted(without, 'video')} without segments: features alone")
    return left_out


if __name__ == "__main__":
    status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from training.support.distributed import leave

        leave(status)
    sys.exit(status)
