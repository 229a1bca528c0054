"""Every reader, by its name on the command line."""

from __future__ import annotations

from training.datasets import csv_table, finegym, penn_action, pouring
from training.datasets.dataset import Reader

READERS: dict[str, Reader] = {
    module.READER.name: module.READER for module in (penn_action, pouring, finegym, csv_table)
}
