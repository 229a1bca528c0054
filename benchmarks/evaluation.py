"""Times of the evaluation's metrics over pairs of videos and over nearest frames.

``python -m benchmarks.evaluation`` compares them with plain loops (`evaluation_peers`) on the same
pairs, in CPU time, times all pairs, and estimates both for FineGym's 1442 test videos.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import evaluation_peers as peers
from training.evaluation.labelled import LabelledVideo, phase_position
from training.evaluation.metrics import pair_scores, precisions_at

# CARL's FineGym99 has 1442 test videos; its 4,624 videos have about 870,000 labelled frames.
FINEGYM_VIDEOS, FINEGYM_FRAMES = 1442, 870_000 / 4624
SAMPLE = 5  # videos whose pairs the plain loops compare
KS = (5, 10, 15)
PHASES = 6


def random_videos(count: int, frames: int, dim: int) -> list[LabelledVideo]:
    """Videos of frames / 2 to 3 frames / 2 frames with PHASES phases, unit-length embeddings."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        length = int(rng.integers(max(frames // 2, 1), frames + frames // 2 + 1))
        phases = np.sort(rng.integers(0, PHASES, length))
        x = rng.normal(size=(length, dim)) + np.linspace(0, 3, length)[:, None]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        numbers = np.arange(length)
        position = phase_position(phases)
        found.append(
            LabelledVideo(str(number), x, phases, position, frames=numbers, times=numbers / 25)
        )
    return found


def metrics(stride: int) -> dict[str, tuple[Callable, Callable]]:
    """(plain loops, ours) of each metric, as functions of the videos."""
    return {
        "Kendall's tau": (
            lambda videos: peers.taus(videos, stride),
            lambda videos: pair_scores(videos, stride, ["tau"]),
        ),
        "alignment error, nearest and DTW": (
            lambda videos: [peers.alignment_errors(videos, way) for way in ("nearest", "dtw")],
            lambda videos: pair_scores(videos, stride, ["alignment"]),
        ),
        "events": (
            peers.event_errors,
            lambda videos: pair_scores(videos, stride, ["events"]),
        ),
        "these together": (
            lambda videos: (
                peers.taus(videos, stride),
                [peers.alignment_errors(videos, way) for way in ("nearest", "dtw")],
                peers.event_errors(videos),
            ),
            lambda videos: pair_scores(videos, stride),
        ),
        f"AP@{', '.join(map(str, KS))}": (
            lambda videos: [list(peers.nearest_hits(videos, stride, k)) for k in KS],
            lambda videos: precisions_at(videos, stride, KS),
        ),
    }


def measure(videos: list[LabelledVideo], stride: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """Rows: metric; CPU ms a pair of the loops and ours; estimates for FineGym's test videos.

    A pair is two videos in both directions. The two figures are medians over rounds that have both;
    ours is that of all pairs. The estimates assume times in proportion to the pairs of frames.
    """
    few = videos[:SAMPLE]
    cells, sample_cells = frame_pairs(videos), frame_pairs(few)
    of_finegym = FINEGYM_VIDEOS * (FINEGYM_VIDEOS - 1) / 2 * FINEGYM_FRAMES**2
    a_pair = 1e3 * cells / (len(videos) * (len(videos) - 1) / 2)
    for name, (plain, ours) in metrics(stride).items():
        ours(few)  # compiles
        both = np.array([(cpu(plain, few), cpu(ours, few)) for _ in range(rounds)])
        ratio = np.median(both[:, 0] / both[:, 1])
        loops, all_pairs = np.median(both[:, 0]) / sample_cells, cpu(ours, videos) / cells
        yield (
            name,
            f"{loops * a_pair:.2f}",
            f"{all_pairs * a_pair:.3f}",
            f"{ratio:.0f}",
            f"{loops * of_finegym / 3600:.1f} h",
            f"{all_pairs * of_finegym / 60:.0f} min",
        )


def frame_pairs(videos: list[LabelledVideo]) -> float:
    """The number of pairs of frames of two videos, each pair of videos once."""
    lengths = np.array([len(video.phases) for video in videos], float)
    return float(lengths.sum() ** 2 - (lengths**2).sum()) / 2


def cpu(call: Callable, videos: list[LabelledVideo]) -> float:
    """Seconds of CPU time of all threads."""
    begin = time.process_time()
    call(videos)
    return time.process_time() - begin


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--videos", type=int, default=200, help="at least 5")
    parser.add_argument("--frames", type=int, default=200, help="of a video, on average")
    parser.add_argument("--dim", type=int, default=128, help="of the embeddings")
    parser.add_argument("--stride", type=int, default=1, help="frames, of tau and retrieval")
    parser.add_argument("--rounds", type=int, default=5, help="of the loops and ours by turns")
    args = parser.parse_args(argv)
    videos = random_videos(args.videos, args.frames, args.dim)
    compiled = time.perf_counter()
    pair_scores(videos[:2], args.stride)
    precisions_at(videos[:2], args.stride, KS)
    compiled = time.perf_counter() - compiled
    before, begin = peak_mib(), time.perf_counter()
    pair_scores(videos, args.stride, progress=True)
    pairs_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    precisions_at(videos, args.stride, KS, progress=True)
    seconds = time.perf_counter() - begin
    inputs = sum(video.embeddings.nbytes for video in videos) / 2**20
    print(
        f"{args.videos} videos, {args.frames} frames, {args.dim} channels, stride {args.stride}, "
        f"{torch.get_num_threads()} threads\n"
        f"first call {compiled:.1f} s; all pairs {pairs_seconds:.1f} s, nearest frames "
        f"{seconds:.1f} s; memory +{peak_mib() - before:.0f} MiB beside {inputs:.0f} MiB of "
        "embeddings\n"
    )
    print(f"{'CPU time':34}{'loops, ms':>10}{'ours, ms':>10}{'ratio':>7}{'FineGym':>10}{'ours':>9}")
    for name, *figures in measure(videos, args.stride, args.rounds):
        cells = zip(figures, (10, 10, 7, 10, 9), strict=True)
        print(f"{name:34}" + "".join(f"{figure:>{width}}" for figure, width in cells), flush=True)


if __name__ == "__main__":
    main()
