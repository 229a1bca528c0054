"""``python -m benchmarks.ranks``: scl_loss whose T frames lie on several ranks.

Without options it prints a cost model for 8 to 512 GPUs, with its assumptions, and writes it to
results/offline-sm_90/ranks.md; any option about GPUs only prints. ``--measure`` compares the ring
with two all-gather forms in gloo processes on this CPU: equality, memory and time.
"""

import argparse
from pathlib import Path

from benchmarks.ranks import report
from benchmarks.ranks.model import SUPPORTED, Links

RESULTS = Path(__file__).parents[1] / "results"
OFFLINE = RESULTS / "offline-sm_90" / "ranks.md"
GPUS = [8, 16, 32, 64, 128, 256, 512]
LENGTHS = [16 * 1920, 64 * 1920, 256 * 1920]


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=report.COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    some = p.add_argument_group("cost model")
    links = Links()
    numbers = {"type": positive, "nargs": "+", "metavar": "N"}
    some.add_argument("--gpus", default=GPUS, help="GPUs that share a video", **numbers)
    some.add_argument("--frames", default=LENGTHS, help="T, frames of a view", **numbers)
    some.add_argument("--videos", type=positive, default=1, help="videos at a time (default: 1)")
    some.add_argument("--card", choices=SUPPORTED, default="NVIDIA H100 80GB HBM3")
    for name, unit, default, what in (
        ("nvlink", "GB/s", links.nvlink / 1e9, "rate inside a node, one direction"),
        ("network", "GB/s", links.network / 1e9, "rate of a GPU between nodes, one direction"),
        ("latency", "us", links.latency * 1e6, "latency of a hop"),
    ):
        some.add_argument(
            f"--{name}", type=rate, default=default, metavar=unit, help=f"{what} ({default:g})"
        )
    other = p.add_argument_group("measurement")
    other.add_argument("--measure", action="store_true", help="run gloo processes on this CPU")
    other.add_argument("--ranks", default=[1, 2, 4], help="numbers of processes", **numbers)
    other.add_argument("--lengths", default=[1920, 7680, 15360], help="T to time", **numbers)
    other.add_argument("--rounds", type=positive, default=5, help="calls of each way (default: 5)")
    other.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of DEVICE/ranks.json and ranks.md"
    )
    return p


def main(arguments: list[str] | None = None) -> None:
    p = parser()
    options = p.parse_args(arguments)
    if options.measure:
        from benchmarks.ranks import measure  # torch takes seconds to import

        try:
            print(measure.run(options.ranks, options.lengths, options.rounds, options.results))
        except RuntimeError as error:
            p.exit(1, f"{report.COMMAND}: {error}\n")
        return
    links = Links(
        nvlink=options.nvlink * 1e9, network=options.network * 1e9, latency=options.latency * 1e-6
    )
    text = report.page(options.gpus, options.frames, options.videos, links, options.card)
    print(text, end="")
    names = ("gpus", "frames", "videos", "card", "nvlink", "network", "latency")
    if all(getattr(options, name) == p.get_default(name) for name in names):
        OFFLINE.write_text(text)


if __name__ == "__main__":
    main()
