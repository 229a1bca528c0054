"""Every reader, by its name on the command line."""

from __future__ import annotations

from training.datasets import (
    activitynet,
    ae2,
    csv_table,
    egoprocel,
    finegym,
    hmdb51,
    ikea_asm,
    kinetics,
    penn_action,
    pouring,
    ssv2,
    ucf101,
)
from training.datasets.dataset import Reader

READERS: dict[str, Reader] = {
    module.READER.name: module.READER
    for module in (
        penn_action,
        pouring,
        finegym,
        ikea_asm,
        ae2,
        ucf101,
        hmdb51,
        kinetics,
        ssv2,
        activitynet,
        egoprocel,
        csv_table,
    )
}
