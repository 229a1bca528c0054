"""Processes many files in parallel threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_threads(
    function: Callable[[Any], Any], items: Iterable[Any], what: str, progress: bool
) -> list[Any]:
    """[function(item) for item in items] on all cores; decoding releases the interpreter's lock."""
    from tqdm import tqdm

    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=cores or 1)
    try:
        results = pool.map(function, items)
        return list(tqdm(results, what, len(items), unit="video", disable=not progress))
    except KeyboardInterrupt:
        print("\nstopping after the current videos", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
