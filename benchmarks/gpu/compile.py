"""``python -m benchmarks.gpu.compile K OF``: a part of what bench and sweep launch, compiled before
they do, into the cache that all phases share. Several of these run beside the tests."""

import sys

from benchmarks.gpu import bench, sweep


def main(part: int, of: int) -> None:
    bench.compile_part(part, of)
    sweep.compile_part(part, of)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
