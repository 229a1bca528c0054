"""Converts CARL_code's train.pkl and val.pkl to one labels.json."""

from __future__ import annotations

import io
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.support.command import UserError

_ARRAYS = re.compile(r"numpy\.(_)?core\.multiarray")


def _storage(data: bytes) -> Any:
    """Replaces torch's own function, which would unpickle anything."""
    return torch.load(io.BytesIO(data), weights_only=True)


class LabelUnpickler(pickle.Unpickler):
    """Unpickles lists, dicts, numbers, strings, tensors and arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Callable:
        if _ARRAYS.fullmatch(module) and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        allowed: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        try:
            return allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it would run {module}.{name}") from None


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


def read_pickle(path: Path) -> list[dict[str, Any]]:
    """The videos of a label pickle: dicts with `video_file`, `frame_label`, `name`, `seq_len`.

    Raises UserError for a file that is not such a pickle or contains anything but data.
    """
    try:
        with open(path, "rb") as file:
            content = LabelUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(
            f"{path} is not a label file of CARL_code, or it holds more than data: {error}"
        ) from error
    if isinstance(content, tuple):  # Penn Action: (videos, indices of each action)
        content = content[0]
    needed = {"video_file", "frame_label"}
    if not isinstance(content, list) or not all(
        isinstance(one, dict) and needed <= one.keys() for one in content
    ):
        raise UserError(
            f"{path} has no list of videos with {' and '.join(sorted(needed))}, as train.pkl and "
            "val.pkl of CARL_code have"
        )
    return content


def convert_labels(splits: dict[str, list[Path]], folder: Path) -> dict[str, Any]:
    """labels.json for the videos below `folder`, from the pickles of each split.

    Phases have no names in the pickles; they are called "phase 0" and so on. The action is the part
    after the number in a name like "0001_bowl"; with other names all videos show one action.
    """
    videos: dict[str, Any] = {}
    phases: dict[str, int] = defaultdict(int)
    for split, paths in splits.items():
        for path in paths:
            for one in read_pickle(path):
                labels = torch.as_tensor(np.asarray(one["frame_label"])).round().long()
                action = _action(one)
                name = _relative(str(one["video_file"]), folder)
                if name in videos:
                    raise UserError(f"{path}: {name} is in two files, or twice in this one")
                videos[name] = {"action": action, "split": split, "phases": labels.tolist()}
                top = int(labels.max()) + 1 if len(labels) else 0
                phases[action] = max(phases[action], top, 1)
    classes = {
        action: [f"phase {number}" for number in range(count)]
        for action, count in sorted(phases.items())
    }
    return {"classes": classes, "videos": videos}


def _action(one: dict[str, Any]) -> str:
    named = re.fullmatch(r"\d+_(.+)", str(one.get("name", "")))
    return named[1] if named and "action_label" in one else "all"


def _relative(video_file: str, folder: Path) -> str:
    """The path for labels.json, relative to the folder, which may be the parent of "videos/"."""
    path = Path(video_file)
    for start in range(len(path.parts)):
        candidate = Path(*path.parts[start:])
        if (folder / candidate).is_file():
            return candidate.as_posix()
    return path.as_posix()
