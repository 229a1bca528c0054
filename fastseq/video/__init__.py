"""Video files in, clips for training out: exact frame reading, view sampling, augmentation.

What to read (`sample_views`: frame indices) and what to do with it (`Augmentation`: a description)
are plain data, apart from the engine that decodes (PyAV here) and the one that transforms (torch).
Needs `pip install "fastseq[video]"` for everything that opens a file.
"""

from fastseq.video.augment import Augmentation, augment_clip, eval_transform
from fastseq.video.reader import VideoError, VideoInfo, probe, read_frames
from fastseq.video.views import sample_views
from fastseq.video.writer import write_video

__all__ = [
    "Augmentation",
    "VideoError",
    "VideoInfo",
    "augment_clip",
    "eval_transform",
    "probe",
    "read_frames",
    "sample_views",
    "write_video",
]
