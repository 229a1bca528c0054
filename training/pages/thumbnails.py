"""The frames of videos as small WebP pictures for a page, within a number of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from training.data.index import VideoRecord
    from training.evaluation.embed import EmbeddedVideo

# Square root of a picture's pixels, and WebP quality (0 to 100), best first: 240 is 320 x 180 of a
# wide video and 180 x 320 of an upright one. The first that fits the bytes is picked.
SETTINGS = (
    *((240, 70), (200, 70), (180, 60), (160, 50), (140, 45)),
    *((120, 40), (100, 35), (80, 30), (60, 20), (40, 10)),
)
EFFORT = 2  # of 0 to 6: on frames of 160 pixels a third of the time of 4, files 4 % larger
SAMPLED = 6  # frames of each video, from which the bytes of all are foretold


def thumbnails(
    videos: Sequence[EmbeddedVideo],
    rows: Sequence[np.ndarray],
    *,
    most_bytes: int,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """WebP pictures of rows of videos: for each video the "pictures" that a payload holds.

    Frames are read from the files, upright and inside the record's crop, never enlarged. All videos
    have the same size in pixels and quality: the best of SETTINGS at which the files fit.

    Args:
        rows: of each video the rows, int64, ascending.
        most_bytes: of all pictures together, before base64.
    Raises:
        VideoError: a file that cannot be read.
    """
    from tqdm import tqdm

    frames = [video.frames[some] for video, some in zip(videos, rows, strict=True)]
    total = sum(map(len, frames))
    with tqdm(total=total, unit="frame", desc="pictures", disable=not progress) as bar:
        for root, quality in SETTINGS[_first_that_fits(videos, frames, most_bytes) :]:
            made, size = [], 0
            bar.reset()
            for video, numbers in zip(videos, frames, strict=True):
                read = _read(video.record, numbers, root)
                files = [_webp(Image.fromarray(frame), quality) for frame in read]
                size += sum(map(len, files))
                made.append(_pictures(files))
                bar.update(len(files))
            if size <= most_bytes:
                break
    return made


def _first_that_fits(
    videos: Sequence[EmbeddedVideo], frames: Sequence[np.ndarray], most_bytes: int
) -> int:
    """The first of SETTINGS at which a sample of the frames promises to fit, or the last one."""
    samples = []
    for video, numbers in zip(videos, frames, strict=True):
        places = np.unique(np.linspace(0, len(numbers) - 1, SAMPLED).round().astype(int))
        read = _read(video.record, numbers[places], SETTINGS[0][0])
        samples.append([Image.fromarray(frame) for frame in read])
    for place, (root, quality) in enumerate(SETTINGS):
        size = 0.0
        for numbers, sample in zip(frames, samples, strict=True):
            scale = min(1.0, root / (sample[0].width * sample[0].height) ** 0.5)
            side = [max(1, round(length * scale)) for length in sample[0].size]
            files = [_webp(picture.resize(side), quality) for picture in sample]
            size += sum(map(len, files)) / len(files) * len(numbers)
        if size <= most_bytes:
            return place
    return len(SETTINGS) - 1


def _read(record: VideoRecord, numbers: np.ndarray, root: int) -> np.ndarray:
    """Frames uint8 (n, H, W, 3) with at most the square of ``root`` pixels."""
    from fastseq.video import read_frames

    crop = getattr(record, "crop", None)
    wide, high = crop[2:] if crop else (record.width, record.height)
    scale = min(1.0, root / (wide * high) ** 0.5)
    side = max(1, round(min(wide, high) * scale))
    return read_frames(record.path, numbers, short_side=side, crop=crop).numpy()


def _webp(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=EFFORT)
    return file.getvalue()


def _pictures(files: Sequence[bytes]) -> dict[str, Any]:
    width, height = Image.open(io.BytesIO(files[0])).size
    return {
        "width": width,
        "height": height,
        "type": "image/webp",
        "offsets": [0, *np.cumsum([len(file) for file in files]).tolist()],
        "data": base64.b64encode(b"".join(files)).decode("ascii"),
    }
