"""Every reader, by its name on the command line."""

from __future__ import annotations

from training.datasets.dataset import Reader

READERS: dict[str, Reader] = {}
