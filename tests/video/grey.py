"""Loaders of small videos in grey, for which a frame's number can be read from its level."""

from types import SimpleNamespace

import numpy as np
import torch

from fastseq.video import Augmentation, ClipLoader, PyAVEngine, TwoViews, VideoPairs, write_video

LENGTHS = {"a": 30, "b": 24, "c": 9, "d": 20, "alone": 26, "e": 14}
ACTIONS = {"a": "swing", "b": "swing", "c": "swing", "d": "pour", "alone": "wave", "e": "pour"}
PLAIN = Augmentation(size=16, jitter=0.0, grayscale=0.0, blur=0.0)
FULL = Augmentation(size=16)
KEYS = ("frames", "steps", "times", "valid", "lengths", "num_frames")


def grey_videos(folder):
    """Videos whose frame t has grey level 8 t; two actions, and a third with a single video."""
    out = []
    for name, frames in LENGTHS.items():
        levels = 8 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
        write_video(folder / f"{name}.mp4", np.broadcast_to(levels, (frames, 36, 48, 3)), 25, crf=5)
        out.append(video(name, folder / f"{name}.mp4", frames, ACTIONS[name]))
    return out


def video(name, path, frames=30, action="swing"):
    return SimpleNamespace(
        id=name, path=str(path), frames=frames, fps=25.0, width=48, height=36, action=action
    )


def views(videos, spec=PLAIN, **options):
    return TwoViews(videos, **{"num_frames": 12, "augmentation": spec, "side": 24} | options)


def pairs(videos, spec=PLAIN, **options):
    given = {"num_frames": 10, "augmentation": spec, "side": 24, "sampling": "segment"}
    return VideoPairs(videos, **given | options)


def loader(items, batch_size=2, workers=0, **options):
    return ClipLoader(items, batch_size, engine=PyAVEngine(16, workers=workers), **options)


def same(one, two):
    return one["ids"] == two["ids"] and all(torch.equal(one[key], two[key]) for key in KEYS)
