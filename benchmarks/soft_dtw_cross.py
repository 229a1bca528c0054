"""Hard DTW of all pairs: fastseq.dtw_cross and other packages, timed in turns in one run.

``python -m benchmarks.soft_dtw_cross``. tslearn, aeon and dtaidistance are included if installed.
Each uses as many threads as PyTorch (``OMP_NUM_THREADS``), and only a package whose values agree
gets a time. All times are the shortest of several calls.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

import fastseq

# (A, B, T, D): a data set like those of the UCR archive, and one of embedded clips.
SHAPES = [(50, 50, 150, 1), (16, 16, 480, 8), (8, 8, 480, 128), (8, 8, 2000, 1)]
TURNS = 3


def tslearn(x: np.ndarray, y: np.ndarray, threads: int) -> np.ndarray:
    from tslearn.metrics import cdist_dtw

    return cdist_dtw(x, y, n_jobs=threads) ** 2


def aeon(x: np.ndarray, y: np.ndarray, threads: int) -> np.ndarray:
    from aeon.distances import dtw_pairwise_distance

    return dtw_pairwise_distance(x.transpose(0, 2, 1), y.transpose(0, 2, 1), n_jobs=threads)


def dtaidistance(x: np.ndarray, y: np.ndarray, threads: int) -> np.ndarray:
    from dtaidistance import dtw, dtw_ndim

    series = np.concatenate([x, y]).astype(np.float64)
    block = ((0, len(x)), (len(x), len(series)))
    options = {"block": block, "parallel": threads > 1, "use_c": True, "compact": False}
    if series.shape[2] == 1:
        matrix = dtw.distance_matrix([one.ravel() for one in series], **options)
    else:
        matrix = dtw_ndim.distance_matrix(list(series), series.shape[2], **options)
    return matrix[: len(x), len(x) :] ** 2


PEERS: tuple[Callable, ...] = (tslearn, aeon, dtaidistance)


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(shape: tuple[int, int, int, int], peer: Callable, threads: int) -> str:
    """One table row: the peer's time beside fastseq's, taken in turns."""
    a, b, t, d = shape
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, t, d, generator=generator) for n in (a, b))
    arrays = x.double().numpy(), y.double().numpy()
    want = fastseq.dtw_cross(x.double(), y.double()).numpy()
    try:
        got = peer(*arrays, threads)
    except ImportError as missing:
        return f"| {peer.__name__} | not installed ({missing.name}) | | |"
    if not np.allclose(got, want, rtol=1e-6):
        return f"| {peer.__name__} | other values | | |"
    fastseq.dtw_cross(x, y)
    pairs = [
        (seconds(lambda: fastseq.dtw_cross(x, y)), seconds(lambda: peer(*arrays, threads)))
        for _ in range(TURNS)
    ]
    ours, theirs = (min(times) for times in zip(*pairs, strict=True))
    return (
        f"| {peer.__name__} | {theirs * 1e3:.0f} ms | {ours * 1e3:.1f} ms | {theirs / ours:.0f}x |"
    )


def main() -> None:
    threads = torch.get_num_threads()
    print(f"{threads} threads, torch {torch.__version__}, fastseq in float32, peers in float64")
    for shape in SHAPES:
        print(f"\n{shape}\n| package | its time | dtw_cross | ratio |\n|---|---|---|---|")
        for peer in PEERS:
            print(row(shape, peer, threads), flush=True)


if __name__ == "__main__":
    main()
