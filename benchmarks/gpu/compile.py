"""``python -m benchmarks.gpu.compile K OF``: compiles part K of OF of the kernels that bench and
sweep launch, in advance, into the cache that all phases share. Several of these run beside the
tests.
"""

import sys

from benchmarks.gpu import bench, sweep


def main(part: int, of: int) -> None:
    bench.compile_part(part, of)
    sweep.compile_part(part, of)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
