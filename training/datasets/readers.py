"""Every reader, by its name on the command line."""

from __future__ import annotations

from training.datasets import (
    activitynet,
    ae2,
    egoprocel,
    hmdb51,
    ikea_asm,
    kinetics,
    ssv2,
    ucf101,
)
from training.datasets.dataset import Reader

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        ikea_asm.READER,
        ae2.READER,
        ucf101.READER,
        hmdb51.READER,
        kinetics.READER,
        ssv2.READER,
        activitynet.READER,
        egoprocel.READER,
    )
}
