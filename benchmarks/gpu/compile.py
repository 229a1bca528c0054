"""``python -m benchmarks.gpu.compile K OF``: a part of what bench and sweep launch, compiled before
they do, into the cache that all phases share. Several of these run beside the tests."""

import sys

from benchmarks.gpu import bench, record, sweep


def main(part: int, of: int) -> None:
    for module in (bench, sweep):
        try:
            module.compile_part(part, of)
        except Exception as error:
            record.failed("compile", module.__name__, error)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
