"""Files of features, one for each video, as `training.extract` writes them and others read them.

- ``bmn``: DIR/csv_mean_T/v_ID.csv with a line of names (f0,f1,...) and T lines of numbers.
  LoadLocalizationFeature of mmaction2 reads it (numpy.loadtxt, skiprows=1), and so does
  dataset.py of github JJBOY/BMN-Boundary-Matching-Network up to 2020 (pandas.read_csv of
  feature_path + "csv_mean_100/").
- ``gtad``: DIR/v_ID.npy, float32 (T, F). The present dataset.py of the same repository reads it
  (numpy.load), and so do forks of github frostinassiky/gtad for ActivityNet. That project's
  published loader does not: it reads THUMOS14 from h5 files.
- ``npz``: the embeddings of all frames, see `training.evaluation.embed.save_embeddings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.localisation.annotations import Annotated, video_names
from training.localisation.rescale import bin_means
from training.support.command import LeftOut, UserError
from training.support.files import read_npz, replacing

if TYPE_CHECKING:
    from training.evaluation.embed import EmbeddedVideo

STEPS = 100  # BMN and G-TAD on ActivityNet
TABLES = ("video_info_new",)  # csv files without features


class FeaturesLeftOut(LeftOut):
    """The videos whose file of features is missing or damaged."""

    def lines(self) -> list[str]:
        lines = super().lines()
        if self.videos:
            lines[-1] = (
                "`python -m training.extract RUN --out FEATURES --format bmn` (or gtad, npz) "
                "writes the files of features again"
            )
        return lines


def feature_path(folder: Path, form: str, steps: int, name: str) -> Path:
    """The file of a video's features."""
    return folder / f"csv_mean_{steps}" / f"{name}.csv" if form == "bmn" else folder / f"{name}.npy"


def rescaled(video: EmbeddedVideo, steps: int) -> np.ndarray:
    """float32 (steps, E): a video's embeddings in equally long bins, see `bin_means`.

    A frame's embedding stands at the middle of the time for which the frame is shown; frames of
    gaps are bridged. Each has unit length and is multiplied by sqrt(E), so that its numbers have a
    root mean square of 1: the networks' initial weights are meant for such numbers.
    """
    from training.evaluation.videos import seconds_of

    record, frames = video.record, video.frames
    times = (seconds_of(record, frames) + seconds_of(record, frames + 1)) / 2
    means = bin_means(video.embeddings, times, float(seconds_of(record, record.frames)), steps)
    return means * np.float32(np.sqrt(means.shape[1]))


def write_features(path: Path, features: np.ndarray) -> None:
    """Write (T, F) features to a csv or npy file, whole or not at all; csv has 6 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, features)
        else:
            header = ",".join(f"f{i}" for i in range(features.shape[1]))
            np.savetxt(file, features, fmt="%.6g", delimiter=",", header=header, comments="")


def find_features(folder: Path, names: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Name of a video -> file of features of a folder.

    Args:
        names: `video_names` of the videos of npz files; by default of the files that are there.

    Raises:
        UserError: there is none, or the folder has features of several kinds or numbers of steps.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected that of `python -m training.extract`")
    found = {
        "csv": [path for path in folder.glob("*.csv") if path.stem not in TABLES],
        "npy": [*folder.glob("*.npy")],
        "npz": [*folder.rglob("*.npz")],
    }
    found |= {part.name: [*part.glob("*.csv")] for part in folder.glob("csv_mean_*")}
    kinds = [kind for kind, files in found.items() if files]
    if not kinds:
        raise UserError(
            f"{folder} has no features; `python -m training.extract RUN --out {folder} --format "
            "bmn` writes them"
        )
    if len(kinds) > 1:
        raise UserError(
            f"{folder} has features of {len(kinds)} kinds ({', '.join(sorted(kinds))}); leave one"
        )
    paths = sorted(found[kinds[0]])
    if kinds != ["npz"]:
        return {path.stem: path for path in paths}
    ids = {path.relative_to(folder).as_posix().removesuffix(".npz"): path for path in paths}
    names = video_names(ids) if names is None else names
    return {names[one]: path for one, path in ids.items() if one in names}


def read_features(
    files: dict[str, Path], videos: Sequence[Annotated], left_out: LeftOut, steps: int = STEPS
) -> dict[str, np.ndarray]:
    """Video -> float32 (T, F), of the videos that have a readable file; shows a bar.

    Args:
        files: of `find_features`.
        steps: T for npz files, whose frames are rescaled here. Others have the T of the file.
        left_out: receives the videos without a readable file.

    Raises:
        UserError: files have different numbers of steps or features, or NaN; the message names it.
    """
    from tqdm import tqdm

    found: dict[str, np.ndarray] = {}
    for video in tqdm(videos, "reading features", unit="video"):
        path = files.get(video.name)
        if path is None:
            left_out.add(video.name, "no file of features")
            continue
        try:
            features = _READERS[path.suffix](path, video, steps)
        except (OSError, ValueError) as error:
            left_out.add(video.name, f"{path}: {error}")
            continue
        if features.ndim != 2 or not len(features):
            raise UserError(f"{path}: expected (steps, features), got shape {features.shape}")
        if not np.isfinite(features).all():
            raise UserError(
                f"{path} has NaN or infinite numbers; extract the features again, and check the "
                "loss in log.jsonl of the run"
            )
        first = next(iter(found), None)
        if first is not None and features.shape != found[first].shape:
            raise UserError(
                f"{path} has {features.shape[0]} steps of {features.shape[1]} features, and "
                f"{files[first]} has {found[first].shape[0]} of {found[first].shape[1]}; extract "
                "all videos with the same run and --steps"
            )
        found[video.name] = features
    return found


def _from_csv(path: Path, *_: object) -> np.ndarray:
    return np.loadtxt(path, dtype=np.float32, delimiter=",", skiprows=1, ndmin=2)


def _from_npy(path: Path, *_: object) -> np.ndarray:
    return np.load(path, allow_pickle=False).astype(np.float32)


def _from_npz(path: Path, video: Annotated, steps: int) -> np.ndarray:
    found = read_npz(path, ("embeddings", "frames"))
    embeddings = found["embeddings"]
    times = (found["frames"] + 0.5) * (video.seconds / max(video.frames, 1))
    means = bin_means(embeddings, times, video.seconds, steps)
    return means * np.float32(np.sqrt(means.shape[1]))


_READERS: dict[str, Callable[[Path, Annotated, int], np.ndarray]] = {
    ".csv": _from_csv,
    ".npy": _from_npy,
    ".npz": _from_npz,
}
