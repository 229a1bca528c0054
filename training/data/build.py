"""Checking the videos of a folder and writing its index."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from training.data.files import INDEX_NAME, LABELS_NAME, Found, ending_of, find_videos, stamp_of
from training.data.footage import Footage, begins_past_the_end, footage_of
from training.data.freshness import UNSTAMPED, by_folder, picture_folders
from training.data.labels import (
    TO_BE_CHECKED,
    LabelError,
    Labels,
    listed,
    match_names,
    phases_of,
    read_labels,
    with_entries,
)
from training.data.load import OLD_INDEX_NAME, Index, load_index
from training.data.names import Names
from training.data.packing import Ragged, as_bytes, packed_phases, packed_times
from training.data.probes import Checked, Journal, Probe, earlier_checks, reader_version
from training.data.store import FORMAT, Stamp, write_store
from training.data.threads import in_threads

JOURNAL_NAME = ".fastseq_index.partial"
_CHUNK = 10_000  # videos whose phases are in memory frame by frame


def build_index(
    folder: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    include: Iterable[str] = (),
    pictures: str | None = None,
    fps: float | None = None,
    verify: bool = False,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Index:
    """Check every video under `folder`, read the labels and write FOLDER/fastseq_index.sqlite.

    A file is not checked again if its size, time of modification and settings are those of the
    last index or of an unfinished check (FOLDER/.fastseq_index.partial), which may end at any time
    and loses at most the results of its last seconds. Of two processes at the same time each
    checks all files, and the index of the one that ends last stays. Labels are always read again.

    Args:
        labels: labels file; default FOLDER/labels.json if there is one.
        include: patterns of files that are checked whatever their extension; see `find_videos`.
        pictures: pattern of the pictures that make up a video, such as "img_*"; see `find_videos`.
        fps: frames per second of videos stored as pictures, where the labels file states none.
        verify: decode every frame of the files for which this has not been done before.
        time_limit: seconds per file, after which it counts as bad.
        progress: show a bar.
    Raises:
        LabelError: labels do not fit the videos. The index is not written then, the checks are
            kept.
        NotADirectoryError, PermissionError: `folder` is not a folder, or cannot be written to.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to, but the index must be stored there: link the videos "
            "into a folder that you can write to"
        )
    include = [*include]
    labels_path = _labels_path(folder, labels)
    given = read_labels(labels_path) if labels_path else Labels()
    labels_stamp = labels_path and stamp_of(labels_path)
    found = find_videos(folder, include, pictures=pictures, progress=progress)
    if labels_path:
        given = match_names(labels_path, given, Names(folder, found.videos, found.ignored))
    given = with_entries(folder, given, found.entries)
    files, stamps = _stamps(folder, found)
    passed_over = picture_folders(folder, files)
    nothing, reader, of_pictures, questions = Probe(), reader_version(), _pictures(found), {}
    for name in found.videos:
        rate = given.videos.get(name, {}).get("fps", fps) if name in of_pictures else None
        questions[name] = Checked(nothing, stamps[name], verify, rate, time_limit, reader)
    checked, new = _check(folder, found, questions, progress)

    reasons: dict[str, str] = {}
    good: dict[str, Probe] = {}
    for name, one in checked.items():
        probe = one.probe
        reason = probe.reason or (_interlaced(folder) if probe.interlaced else "")
        reason = reason or begins_past_the_end(given.videos.get(name, {}), probe, probe.damaged)
        if reason:
            reasons[name] = reason
        else:
            good[name] = probe
    footage, cut = _footage(labels_path or folder, given, good)
    phases, changed = _phases(labels_path or folder, given, good)
    changed = [name for name in good if name in {*changed, *cut}]
    arrays, texts, names = _columns(found, given, good, footage, phases)
    arrays["verified"] = np.array([checked[name].verified for name in good], bool)
    arrays["size"] = np.array([checked[name].stamp[0] for name in good], np.int64)
    arrays["changed"] = np.array([checked[name].stamp[1] for name in good], np.int64)
    arrays["given_fps"] = np.array([checked[name].fps or np.nan for name in good], np.float64)
    about = {
        "format": FORMAT,
        "reader": reader,
        "labels": labels_path
        and {
            "path": Path(os.path.relpath(labels_path, folder)).as_posix(),
            "stamp": labels_stamp,
            "changed": changed,
            "unused": [*(name for name in given.videos if name not in good), *given.gone],
        },
        "include": include,
        "pictures": pictures,
        "fps": fps,
        "picture_folders": passed_over,
        "class_sets": given.class_sets,
        "names": names,
    }
    bad = [(name, reason, json.dumps(checked[name].to_json())) for name, reason in reasons.items()]
    write_store(folder / INDEX_NAME, about, arrays, texts, files, bad)
    with suppress(FileNotFoundError):
        (folder / OLD_INDEX_NAME).unlink()
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    index = load_index(folder, check=False)
    return replace(index, found=found, checked=new, kept=len(checked) - new)


def _labels_path(folder: Path, labels: str | os.PathLike | None) -> Path | None:
    if labels is not None:
        return Path(labels).resolve()
    return folder / LABELS_NAME if (folder / LABELS_NAME).is_file() else None


def _stamps(folder: Path, found: Found) -> tuple[dict[str, dict[str, Stamp]], dict[str, Stamp]]:
    """The stamps of all files by folder and name, and that of each video's file."""
    from fastseq.video.source import file_of

    root = os.path.join(folder, "")
    places = {
        name: file_of(root + place).relative_to(folder).as_posix()
        for name, place in found.places.items()
    }
    files = {name: places.get(name, name) for name in found.videos}
    looked = [*found.looked, *(name for name in found.ignored if name.endswith(".tar"))]
    stamps = dict.fromkeys(looked, UNSTAMPED)
    for file in dict.fromkeys(files.values()):
        size, changed = stamp_of(root + file)
        stamps[file] = (size, changed)
    return by_folder(stamps), {name: stamps[file] for name, file in files.items()}


def _pictures(found: Found) -> set[str]:
    """The videos that are stored as pictures, in folders and in tars: those have no ending."""
    in_tars = (name for name, place in found.places.items() if "#" in place)
    return {*found.pictures, *(name for name in in_tars if not ending_of(name))}


def _check(
    folder: Path, found: Found, questions: Mapping[str, Checked], progress: bool
) -> tuple[dict[str, Checked], int]:
    """The answer to each question, and how many were not known before."""
    import fastseq.video

    journal = Journal(folder / JOURNAL_NAME)
    known = earlier_checks(folder / INDEX_NAME) | journal.read()
    answers = {
        name: known[name]
        for name, question in questions.items()
        if name in known and known[name].answers(question)
    }
    del known

    def look(name: str) -> None:
        question = questions[name]
        options: dict[str, Any] = {} if question.fps is None else {"fps": question.fps}
        path = str(folder / found.place(name))
        try:
            info = fastseq.video.probe(
                path, decode=question.verified, time_limit=question.time_limit, **options
            )
            probe = _facts(info)
        except ImportError:
            raise
        except Exception as error:  # one bad file must not stop the others
            reason = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
            probe = Probe(reason=reason)
        answers[name] = replace(question, probe=probe)
        journal.add(name, answers[name])

    todo = [name for name in questions if name not in answers]
    with journal:
        in_threads(look, todo, "checking", progress and bool(todo))
    return {name: answers[name] for name in questions}, len(todo)


def _facts(info: Any) -> Probe:
    return Probe(
        frames=info.frames,
        fps=float(info.fps),
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        note=info.note,
        mirrored=info.mirrored,
        gaps=tuple(info.gaps),
        interlaced=info.interlaced,
        random_access=info.random_access,
        remarks=tuple(info.remarks),
        packed_times=packed_times(info.times, info.fps),
    )


def _interlaced(folder: Path) -> str:
    return (
        "interlaced (two fields per frame), which training does not read: "
        f"`python -m training.prepare {shlex.quote(str(folder))} --transcode OUT` makes a "
        "progressive copy (FFmpeg's bwdif)"
    )


def _footage(
    path: Path, labels: Labels, probes: Mapping[str, Probe]
) -> tuple[dict[str, Footage], list[str]]:
    """Footage of each labelled video, and the damaged ones whose trim was cut to their frames."""
    footage, changed, problems = {}, [], []
    for name, entry in labels.videos.items():
        if name not in probes:
            continue
        try:
            footage[name], cut = footage_of(entry, probes[name], probes[name].damaged)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if cut:
            changed.append(name)
    if problems:
        raise LabelError(listed(path, problems))
    return footage, changed


def _phases(
    path: Path, labels: Labels, probes: Mapping[str, Probe]
) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    """The packed phases of each class set and video, and videos whose labels did not fit."""
    packed: dict[str, dict[str, bytes]] = {class_set: {} for class_set in labels.class_sets}
    changed: list[str] = []
    for entries in _chunks(labels.videos):
        infos = {name: probes[name] for name in entries if name in probes}
        damaged = [name for name, probe in infos.items() if probe.damaged]
        phases, unfit = phases_of(path, replace(labels, videos=entries), infos, damaged)
        changed += unfit
        for class_set, of_videos in phases.items():
            packed[class_set] |= {name: packed_phases(one) for name, one in of_videos.items()}
    return packed, changed


def _chunks(videos: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    items = iter(videos.items())
    while chunk := dict(islice(items, _CHUNK)):
        yield chunk


def _columns(
    found: Found,
    labels: Labels,
    probes: Mapping[str, Probe],
    footage: Mapping[str, Footage],
    phases: Mapping[str, Mapping[str, bytes]],
) -> tuple[dict[str, np.ndarray], dict[str, Ragged], dict[str, list[str]]]:
    """Arrays, texts, and the names of the codes among the arrays: see `Columns`."""
    entries = [labels.videos.get(name, {}) for name in probes]
    values = {
        "action": [entry.get("action", "all") for entry in entries],
        "view": [entry.get("view", "") for entry in entries],
        "codec": [probe.codec for probe in probes.values()],
    }
    texts = {
        "id": Ragged.of(map(as_bytes, probes)),
        "place": Ragged.where_any(as_bytes(found.places.get(name, "")) for name in probes),
        "facts": Ragged.where_any(_packed(probe.facts()) for probe in probes.values()),
        "times": Ragged.where_any(probe.packed_times for probe in probes.values()),
        "used": Ragged.where_any(
            _packed(_used(entry, footage.get(name)))
            for name, entry in zip(probes, entries, strict=True)
        ),
    }
    for class_set in labels.class_sets:
        values[f"split/{class_set}"] = [labels.split_of(name, class_set) for name in probes]
        of_videos = phases[class_set]
        texts[f"phases/{class_set}"] = Ragged.where_any(of_videos.get(name, b"") for name in probes)
    arrays = {
        name: np.array([getattr(probe, name) for probe in probes.values()], np.int32)
        for name in ("frames", "width", "height", "rotation")
    }
    arrays["fps"] = np.array([probe.fps for probe in probes.values()], np.float64)
    arrays["sound"] = np.array(
        [
            probe.frames - sum(stop - first for first, stop in _gaps(probe, footage.get(name)))
            for name, probe in probes.items()
        ],
        np.int32,
    )
    tars = [found.places.get(name, "").rpartition("#")[0] for name in probes]
    shards = {tar: number for number, tar in enumerate(sorted({*tars} - {""}))}
    arrays["shard"] = np.array([shards.get(tar, -1) for tar in tars], np.int32)
    names = {}
    for name, column in values.items():
        names[name] = sorted({*column})
        codes = {text: code for code, text in enumerate(names[name])}
        arrays[name] = np.array([codes[text] for text in column], np.int32)
    return arrays, texts, names


def _gaps(probe: Probe, footage: Footage | None) -> Sequence[tuple[int, int]]:
    return probe.gaps if footage is None else footage.gaps


def _used(entry: Mapping[str, Any], footage: Footage | None) -> dict[str, Any]:
    """What few labels state about the used part of a video, for JSON."""
    made: dict[str, Any] = {}
    if footage is not None:
        values = {"trim": footage.trim, "crop": footage.crop, "sync": footage.sync}
        made = {name: value for name, value in values.items() if value is not None}
        if footage.trim is not None:
            made["gaps"] = footage.gaps
    if TO_BE_CHECKED in str(entry.get("remark", "")):
        made["unchecked"] = True
    return made


def _packed(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode() if facts else b""
