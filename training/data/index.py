"""The index of a folder of videos: the result of checking them once, before training."""

from training.data.build import build_index
from training.data.files import INDEX_NAME
from training.data.load import Index, StaleIndex, load_index, load_indexes
from training.data.records import VideoRecord, Videos

__all__ = [
    "INDEX_NAME",
    "Index",
    "StaleIndex",
    "VideoRecord",
    "Videos",
    "build_index",
    "load_index",
    "load_indexes",
]
