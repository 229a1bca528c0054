"""Reads the tensors of a weights file without running code from it."""

import _compat_pickle
import logging
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file, by its dotted path in it ("state_dict.module.conv1.weight").

    Reads .safetensors and .npz; any other file must be written by torch.save, in today's or the old
    format. Other Python objects in such a file (argparse.Namespace, numpy scalars, paths,
    configurations) are skipped: their classes are neither imported nor called.

    Raises ValueError for a damaged file, a file in another format, or one without tensors.
    """
    try:
        content = _READERS.get(path.suffix.lower(), _read_pickle)(path)
    except ImportError:
        raise
    except Exception as error:
        text = str(error).strip()  # torch.load puts the reason after advice to allow everything
        reason = (text.partition("WeightsUnpickler error:")[2] or text).strip()
        reason = re.split(r"\n|\. ", reason)[0][:200]
        if _is_cut_off(path, error):
            raise ValueError(
                f"{path}: cannot be read as a checkpoint: it is damaged or cut off, probably by an "
                "incomplete download or copy; get it again"
            ) from error
        raise ValueError(
            f"{path}: cannot be read as a checkpoint of plain tensors ({type(error).__name__}: "
            f"{reason}). If it holds other Python objects and you trust it, load it yourself and "
            "save its state dict alone with torch.save"
        ) from error
    if isinstance(content, _Passed):
        raise ValueError(
            f"{path}: contains a pickled object, whose class is not loaded, instead of a state "
            "dict; save model.state_dict() instead"
        )
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary, got {type(content).__name__}")
    tensors = dict(_flat(content))
    if not tensors:
        raise ValueError(f"{path}: no tensors in it, top-level keys {examples(content)}")
    return tensors


def _is_cut_off(path: Path, error: Exception) -> bool:
    """Whether an error of reading is that of a file without its end."""
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive and not zipfile.is_zipfile(path):  # the table of its members is at the end
        return True
    ends = ("truncated", "unexpected eof", "not enough data", "exhausted before")
    ends += ("incomplete metadata", "header too small", "invalid header length")  # of safetensors
    return isinstance(error, EOFError) or any(text in str(error).lower() for text in ends)


def read_run_tensors(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """`read_tensors`, but only the average of a run's checkpoint that has one (``optim.ema``).

    key: ``model.weights_key``; with a key all tensors are returned, "model" names the weights of
    the last step.
    """
    tensors = read_tensors(path)
    if key is not None or not _in_run(path):
        return tensors
    average = {
        name.removeprefix("ema."): value
        for name, value in tensors.items()
        if name.startswith("ema.")
    }
    if average:
        logger.info("%s has an average of the weights (optim.ema), which is loaded", path)
    return average or tensors


def _in_run(path: Path) -> bool:
    """Whether this is RUN/checkpoints/NAME.pt: other files with "ema" have other conventions."""
    folder = path.resolve().parent
    return folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()


def examples(keys: Mapping | list[str]) -> str:
    """The first few of many names, as text."""
    names = [str(key) for key in keys]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "(none)"


class _Passed:
    """Placeholder for any skipped object: accepts all arguments of unpickling and keeps nothing.

    No other class is ever called, whatever the file names."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Passed":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _PassedMapping(_Passed):
    """The same for objects whose entries are set one by one, such as subclasses of dict."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()


def _read_pickle(path: Path) -> Any:
    names = _named_in(path)
    # torch.load checks its own list first, so the classes of tensors keep their meaning.
    for stand_in in (_Passed, _PassedMapping):
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            if stand_in is _PassedMapping or not names:
                raise
    raise AssertionError("not reached")


def _named_in(path: Path) -> set[str]:
    """Names of the classes and functions that a file refers to, found without unpickling it."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return {name for _ in range(4) for name in _globals(file)}  # the fourth is the object
    with zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        names = set()
        for name in inside:
            with archive.open(name) as file:
                names |= set(_globals(file))
        return names


def _globals(file: IO[bytes]) -> set[str]:
    names = set()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = argument.partition(" ")
            names.add(f"{module}.{name}")
            # torch.load compares some names of Python 2 after translating them to Python 3.
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            names.add(f"{module}.{name}")
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError('.safetensors files need: pip install "fastseq[train]"') from error
    return load_file(path)


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        kinds = {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}
        return {name: torch.from_numpy(array) for name, array in kinds.items()}


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz}


def _flat(content: Mapping, place: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{place}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{place}{key}.")
