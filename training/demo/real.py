"""The demo on a user's own clips: checks of their folder, and advice about labels."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.support.command import UserError

if TYPE_CHECKING:
    from training.data.index import Index

RECIPE = "recipes/carl_small.yaml"


def check_places(folder: Path, out: Path) -> None:
    """Raise UserError if there is no such folder, or if the output would lie among the clips."""
    if not folder.is_dir():
        raise UserError(f"--real {folder} is not a folder; name the folder with your clips")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--out {out} lies in {folder}, among the clips; choose one outside")


@dataclass(frozen=True)
class Clips:
    """A folder's numbers of clips per split, and whether both splits have phase labels."""

    folder: Path
    train: int
    test: int
    labelled: bool
    first: str

    @classmethod
    def of(cls, index: Index) -> Clips:
        if not index.videos:
            raise UserError(
                f"{index.folder} has no video that can be read; "
                f"`python -m training.prepare {index.folder}` says why"
            )
        splits = {
            split: [record for record in index.videos if record.split == split]
            for split in ("train", "test")
        }
        labelled = all(
            any(record.phases is not None and (record.phases >= 0).any() for record in records)
            for records in splits.values()
        )
        counts = {split: len(records) for split, records in splits.items()}
        if not counts["train"]:
            raise UserError(
                f'every clip of {index.folder} is for testing: remove "split": "test" from two '
                "thirds of them in labels.json and run `python -m training.prepare "
                f"{shlex.quote(str(index.folder))}`"
            )
        return cls(index.folder, **counts, labelled=labelled, first=index.videos[0].id)

    @property
    def overrides(self) -> list[str]:
        """Recipe values: without a test split, the report shows the training clips."""
        return [] if self.test else ["data.test_split=train"]

    def advice(self) -> list[str]:
        """Lines about what is missing for a table and how to add it; empty if nothing is."""
        if self.labelled:
            return []
        folder, first, lines = shlex.quote(str(self.folder)), shlex.quote(self.first), []
        if self.train + self.test < 2:
            return [
                "no table, and nothing to align: a single clip cannot be compared; add more clips"
            ]
        if not self.test:
            lines += [
                f"no clip of {self.folder} is for testing, so the report shows training clips: "
                f'write "split": "test" for a third of them in {self.folder / "labels.json"}:',
                "  " + json.dumps({"videos": {self.first: {"split": "test"}}}),
            ]
        return [
            *lines,
            "no table: the metrics need phase labels of clips in both splits. Mark one clip and "
            "carry its events over:",
            f"  python -m training.propagate {folder} --sheet-only {first}",
            "writes sheet.png with its frames and shows what to write into labels.json; then",
            f"  python -m training.prepare {folder}",
            f"  python -m training.propagate {folder} --from {first}",
            "writes labels.propagated.json and a sheet to check it",
        ]
