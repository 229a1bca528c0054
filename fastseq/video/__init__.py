"""Video files in, clips for training out: exact frame reading, view sampling, augmentation.

Plain data describes what to read (`TwoViews`, `VideoPairs`, `SynchronisedViews`, `SegmentTuples`,
`SegmentClips`, `ConsecutiveBlocks`: frame numbers) and how to augment it (`Augmentation`). Engines
turn both into pixels: DALI on the GPU, DALI on the CPU, or PyAV with torch. `open_engine` picks one
and states why; `ClipLoader` iterates. PyAV (`pip install "fastseq[video]"`) opens the files, also
to inspect them for DALI (`pip install "fastseq[dali]"`).
"""

from fastseq.video._av import VideoError
from fastseq.video.augment import Augmentation, augment_clip, eval_draw, eval_transform
from fastseq.video.blocks import ConsecutiveBlocks
from fastseq.video.decode import scaled_size
from fastseq.video.engines.choose import ENGINES, choose_engine, open_engine
from fastseq.video.engines.pyav import PyAVEngine
from fastseq.video.items import ClipItems, Item, Items, TwoViews, VideoPairs, decode_side
from fastseq.video.loader import ClipLoader, TooManyBadVideos
from fastseq.video.order import ByShard, Mixture, Shuffled
from fastseq.video.reader import probe, read_frames
from fastseq.video.readings import Clip, Engine, Reading
from fastseq.video.sampling import context_frames, sample_clip, sample_views
from fastseq.video.segments import SegmentClips
from fastseq.video.synchronised import SynchronisedViews
from fastseq.video.timeline import VideoInfo
from fastseq.video.transcoding import transcode
from fastseq.video.tuples import SegmentTuples
from fastseq.video.writer import write_video

__all__ = [
    "ENGINES",
    "Augmentation",
    "ByShard",
    "Clip",
    "ClipItems",
    "ClipLoader",
    "ConsecutiveBlocks",
    "Engine",
    "Item",
    "Items",
    "Mixture",
    "PyAVEngine",
    "Reading",
    "SegmentClips",
    "SegmentTuples",
    "Shuffled",
    "SynchronisedViews",
    "TooManyBadVideos",
    "TwoViews",
    "VideoError",
    "VideoInfo",
    "VideoPairs",
    "augment_clip",
    "choose_engine",
    "context_frames",
    "decode_side",
    "eval_draw",
    "eval_transform",
    "open_engine",
    "probe",
    "read_frames",
    "sample_clip",
    "sample_views",
    "scaled_size",
    "transcode",
    "write_video",
]
