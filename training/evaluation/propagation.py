"""Carries events of a few clips over to the other clips of their action by DTW."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from training.data.label_values import in_seconds
from training.data.labels import TO_BE_CHECKED, Labels, in_frames, read_labels
from training.data.names import Names
from training.evaluation.alignment import OUTSIDE, align, align_open
from training.evaluation.videos import seconds_of
from training.support.command import UserError
from training.support.files import replacing

if TYPE_CHECKING:
    from training.data.index import Index, VideoRecord
    from training.evaluation.alignment import Alignment
    from training.evaluation.embed import EmbeddedVideo

WAYS = 3  # the best of 3, 6 and all, on 8 golf swings
UNLIKE = 0.5  # a clip whose similarity is below this share of the clips' median is doubtful


def events_of(record: VideoRecord, count: int) -> list[int | None]:
    """First frames of the phases 1 to ``count``; None for a phase whose beginning is not shown.

    A phase that begins with the first labelled frame may have begun before, and a phase that is
    never reached has no beginning either.

    Raises UserError for phases that go backwards: they are not a sequence of events.
    """
    if record.phases is None:
        return [None] * count
    labelled = np.flatnonzero(record.phases >= 0)
    phases = record.phases[labelled]
    back = np.flatnonzero(np.diff(phases) < 0)
    if len(back):
        raise UserError(
            f"{record.id}: its phases go backwards at frame {labelled[back[0] + 1]}; events can "
            "be carried over only if each phase occurs once, in order"
        )
    first = np.searchsorted(phases, np.arange(1, count + 1))
    return [int(labelled[place]) if 0 < place < len(labelled) else None for place in first]


def steps_back(record: VideoRecord) -> bool:
    """Whether a labelled video's phases ever go backwards."""
    return bool(np.any(np.diff(record.phases[record.phases >= 0]) < 0))


@dataclass(frozen=True)
class Proposal:
    """The frames of one source's events in a target, found directly or through a third clip.

    frames: the target's frame for each event; None for an event that the source does not show.
    outside: for each event whether it lies outside the path; its frame is then the path's nearer
    end.
    similarity: mean cosine similarity of the frames along the path.
    """

    frames: Sequence[int | None]
    outside: Sequence[bool]
    similarity: float


def propose(
    source: EmbeddedVideo,
    events: Sequence[int | None],
    target: EmbeddedVideo,
    *,
    opened: bool = False,
) -> Proposal:
    """Carry events of a source, in its frame numbers, over to a target by DTW.

    ``opened``: both clips may begin and end anywhere, see `align_open`. An event on a damaged frame
    is moved to the next sound frame.
    """
    alignment = _aligned(source, target, opened)
    frames: list[int | None] = []
    outside = []
    for event in events:
        place = row = None
        if event is not None:
            row = min(int(np.searchsorted(source.frames, event)), len(source.frames) - 1)
            place = int(alignment.matched[row])
        outside.append(place == OUTSIDE)
        if place == OUTSIDE:
            place = int(alignment.j[0] if row < alignment.i[0] else alignment.j[-1])
        frames.append(None if place is None else int(target.frames[place]))
    return Proposal(frames, outside, alignment.similarity)


def _aligned(source: EmbeddedVideo, target: EmbeddedVideo, opened: bool) -> Alignment:
    if opened:
        try:
            return align_open(source, target)
        except UserError:  # all frames are equally similar: one clip stands still
            pass
    return align(source, target)


def propose_all(
    source: EmbeddedVideo,
    events: Sequence[int | None],
    targets: Sequence[EmbeddedVideo],
    *,
    opened: bool = False,
    progress: bool = True,
) -> dict[str, list[Proposal]]:
    """Proposals for each target: direct, and through each of the WAYS clips most like the source.

    On 12 golf swings, each in turn the only marked one, the median of these four proposals has a
    mean error of 14 frames, the direct one of 19. Proposals that lie close together are reliable.
    """
    straight = {v.record.id: propose(source, events, v, opened=opened) for v in targets}
    nearest = sorted(targets, key=lambda video: -straight[video.record.id].similarity)
    proposals = {}
    for target in tqdm(targets, unit="clip", desc="aligning", disable=not progress):
        name = target.record.id
        proposals[name] = [straight[name]]
        for way in [video for video in nearest if video is not target][:WAYS]:
            first = straight[way.record.id]
            second = propose(way, first.frames, target, opened=opened)
            outside = [a or b for a, b in zip(first.outside, second.outside, strict=True)]
            similarity = min(first.similarity, second.similarity)
            proposals[name].append(Proposal(second.frames, outside, similarity))
    return proposals


@dataclass(frozen=True)
class Carried:
    """The events of one clip, from one or more proposals.

    boundaries: as in labels.json, not decreasing; 0 for events before those that any source shows,
        the clip's number of frames for events after them.
    spread: frames between the first and the last proposal for each event; None without proposals.
    similarity: the highest similarity of the proposals.
    doubts: reasons to check the clip.
    """

    boundaries: list[int]
    spread: list[int | None]
    similarity: float
    doubts: list[str] = field(default_factory=list)

    @property
    def urgency(self) -> tuple[int, int, float]:
        """Sort key of clips: the most doubtful clip is first."""
        return -len(self.doubts), -max(apart or 0 for apart in self.spread), self.similarity


def combine(record: VideoRecord, names: Sequence[str], proposals: Sequence[Proposal]) -> Carried:
    """The median of the proposals for each event; proposals outside a path count only if all are.

    Args:
        names: names of the events, for the doubts.
    """
    places: list[list[int]] = []
    doubts = []
    for k, name in enumerate(names):
        shown = [p for p in proposals if p.frames[k] is not None]
        inside = [p for p in shown if not p.outside[k]]
        if shown and not inside:
            doubts.append(f"{name} is outside the part that the clips share")
        elif not shown:
            doubts.append(f"{name} is in no source")
        frames = [p.frames[k] for p in inside or shown]
        places.append([frame for frame in frames if frame is not None])
    last = max(k for k, found in enumerate(places) if found)
    medians = [
        int(np.median(found)) if found else (record.frames if k > last else 0)
        for k, found in enumerate(places)
    ]
    # So an event without a proposal, between others, has the frame of the event before it.
    boundaries = np.maximum.accumulate(medians).tolist()
    doubts += [
        f"{name} was found before the event that precedes it"
        for k, name in enumerate(names)
        if places[k] and boundaries[k] != medians[k]
    ]
    spread = [max(found) - min(found) if found else None for found in places]
    return Carried(boundaries, spread, max(p.similarity for p in proposals), doubts)


def doubt_unlike(carried: dict[str, Carried]) -> None:
    """Add a doubt to clips that are much less similar to the sources than most clips."""
    if not carried:
        return
    usual = float(np.median([events.similarity for events in carried.values()]))
    for events in carried.values():
        if events.similarity < UNLIKE * usual:
            events.doubts.append(f"similarity {events.similarity:.2f}, most have {usual:.2f}")


def errors_of(
    records: Sequence[VideoRecord], carried: Mapping[str, Carried], event: int
) -> list[tuple[int, float]]:
    """(frames, seconds) between a carried event and its label, for clips that have both.

    event: index of the event, from 0.
    """
    found = []
    for record in records:
        made = carried[record.id]
        label = events_of(record, len(made.boundaries))[event]
        if label is not None and made.spread[event] is not None:
            carried_to = made.boundaries[event]
            times = seconds_of(record, [carried_to, label])
            found.append((abs(carried_to - label), float(abs(times[0] - times[1]))))
    return found


def find_clip(index: Index, name: str) -> VideoRecord:
    """A video of an index by its id, or by a path to its file; UserError names the nearest id."""
    path = Path(name).resolve()
    for record in index.videos:
        if record.id == name or Path(record.path).resolve() == path:
            return record
    ids = [record.id for record in index.videos]
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{name} is not among the {len(ids)} videos of {index.folder}{hint}")


@dataclass(frozen=True)
class LabelsFile:
    """A labels file, and the name in it of each video of the index.

    Attributes:
        keys: id of a video -> its name in the file.
        records: id -> video.
        class_set: class set that events are carried over in; "" in a file without class sets.
    """

    path: Path
    labels: Labels
    keys: Mapping[str, str]
    records: Mapping[str, VideoRecord]
    class_set: str = ""

    @classmethod
    def read(cls, path: Path, index: Index) -> LabelsFile:
        """Read a file; LabelError if it is missing or does not have the documented form."""
        labels = read_labels(path)
        records = {record.id: record for record in index.videos}
        names = Names(index.folder, records, {})
        matched = {names.match(key): key for key in labels.videos}
        keys = {name: key for name, key in matched.items() if name}
        class_set = index.class_set
        if class_set not in labels.class_sets:
            raise UserError(
                f"{path} does not declare the class set {class_set!r} of the index of "
                f"{index.folder}; prepare the folder with this file"
            )
        return cls(path, labels, keys, records, class_set)

    def has_action(self, record: VideoRecord) -> bool:
        return "action" in self._entry(record.id)

    def write(
        self, path: Path, carried: Mapping[str, Carried], action: str, sources: Sequence[str]
    ) -> None:
        """Write another file with this content and with the events of videos as boundaries.

        It has one line per video, so it can be corrected by hand. Entries that events are carried
        over to are written in frames; labels of other class sets stay.
        """
        content = self.labels.content
        videos = dict(content.get("videos", {}))
        unit = {"unit": "frames"} if in_seconds(content) else {}
        for name, events in carried.items():
            entry = in_frames(self._entry(name), self.records[name])
            if action != "all":
                entry = {"action": action} | entry
            come = f"carried over from {', '.join(sources)}: {TO_BE_CHECKED}"
            remark = "; ".join(str(one) for one in (entry.pop("remark", ""), come) if one)
            new: dict[str, Any] = {"boundaries": events.boundaries}
            if self.class_set:
                parts = entry.get("labels", {})
                part = {**parts.get(self.class_set, {}), **new}
                new = {"labels": {**parts, self.class_set: part}}
            entry |= {**new, "remark": remark}
            videos[self.keys.get(name, name)] = unit | entry
        write_labels(path, {**content, "videos": videos})

    def _entry(self, name: str) -> Mapping[str, Any]:
        return self.labels.videos.get(self.keys.get(name, name), {})


def write_labels(path: Path, content: Mapping[str, Any]) -> None:
    """Write a labels file whole, with one line per video, so it can be corrected by hand."""

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    parts = []
    for key, value in content.items():
        if key == "videos" and value:
            entries = [f"  {text(name)}: {text(entry)}" for name, entry in value.items()]
            parts.append(' "videos": {\n' + ",\n".join(entries) + "\n }")
        else:
            parts.append(f" {text(key)}: {text(value)}")
    with replacing(path) as partial:
        partial.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
