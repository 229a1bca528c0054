"""Phrases that the project's text avoids, and the width of its tables.

To allow a justified use of a phrase, add the file and the phrase to `ALLOWED`, with the reason.
"""

import re
from bisect import bisect
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each phrase means little or is hard to read; beside it, what to write instead. They are searched
# in lower case; a space also matches the end of a line in a comment or a string.
NOT_BEFORE_A_NOUN = r"(?=[.,;:)]|$| (?:and|as|at|for|from|has|in|is|on|or|that|to|which|works)\b)"
PHRASES = {
    r"asked for\b": "requested, named, wanted",
    rf"of (?:its|their) own{NOT_BEFORE_A_NOUN}": "its own ..., a separate ...",
    r"(?<!counts )(?<!count )(?<!not )(?<!choices )in the mean\b(?! over)": "on average",
    r"set aside\b": "keep, reserve, leave out",
    r"as far as\b": "until, if, to the extent that",
    r"goes on\b(?! a | the )": "continues",
    r"for want of\b": "for lack of, without",
    r"right to (?:\d|about)": "accurate to",
    r"what came\b": "what was passed",
    r"dearer\b": "more expensive, slower",
    r"foretells?\b": "predicts",
    r"\d(?<![\w.,]\d)\d{0,2}(?:\x20\d{3})+(?![\w.,])": "digits grouped by commas: 240,000",
}
# (file, phrase as the test prints it): why it is right there.
ALLOWED = {("training/data/files.py", "264 265 266"): "endings of file names"}
GROUPS = {
    "pages": ("*.md", "docs/**/*.md", "[a-z]*/**/README.md", "Makefile", "docs/tools/*.py"),
    "fastseq": ("fastseq/**/*.py", "csrc/**/*.cu*", "csrc/**/*.cpp", "csrc/**/*.h", "setup.py"),
    "training": ("training/**/*.py",),
    "benchmarks": ("benchmarks/**/*.py",),
    "tests": ("tests/**/*.py", "tests/**/*.cpp", "tests/**/*.h"),
}
MOST_COLUMNS, MOST_WORDS = 4, 25


def files(group: str) -> list[Path]:
    """The files of a group. Measured results and this file are left out."""
    found = {path for pattern in GROUPS[group] for path in ROOT.glob(pattern)}
    return sorted(
        path
        for path in found - {Path(__file__)}
        if not {"results", "site", ".venv", "build", "dist"} & set(path.relative_to(ROOT).parts)
    )


def avoided(text: str) -> list[tuple[int, str, str]]:
    """(line, phrase, advice) for each phrase of the text that is avoided."""
    lines = [line.strip(" \t#\"'/*").removeprefix('f"') for line in text.lower().split("\n")]
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    joined = "\n".join(lines)
    return sorted(
        (bisect(starts, match.start()), " ".join(match[0].split()), advice)
        for phrase, advice in PHRASES.items()
        for match in re.finditer(phrase.replace(" ", r"[ \n]"), joined)
    )


def hits(path: Path) -> list[str]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return [
        f'{name}:{line}: "{phrase}": rather {advice}'
        for line, phrase, advice in avoided(text)
        if (name, phrase) not in ALLOWED
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_phrases_that_are_avoided(group):
    paths = files(group)
    assert len(paths) > 10
    found = [hit for path in paths for hit in hits(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("A backend asked for by name.", [1]),
        ("# a kernel of its\n# own works on pairs", [1]),
        ('raise E("a run was asked "\n    "for")', [1]),
        ("levels differ\nby 1.1 grey levels in the mean", [2]),
        ("of 240 000 videos", [1]),
        ("nine\n12 345 678", [2]),
        ("a limit of 12\n345 frames", []),
        ("the first word of its own view, errors of their own type", []),
        ("a length of 0 counts in the mean", []),
        ("240,000 videos, (8, 480, 128), 1920 1080, line('296,145 386,145'), fp64 352", []),
        ("asked, for", []),
    ],
)
def test_only_avoided_phrases_are_found(text, lines):
    assert [line for line, *_ in avoided(text)] == lines


@pytest.mark.parametrize(("name", "phrase"), ALLOWED)
def test_what_is_allowed_is_still_there(name, phrase):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert phrase in [found for _, found, _ in avoided(text)]


def tables(text: str) -> list[tuple[int, list[list[str]]]]:
    """(line, rows of cells) of the Markdown tables of a text, without the line below the head."""
    found, rows, code = [], [], False
    for number, line in enumerate([*text.split("\n"), ""], 1):
        code ^= line.startswith("```")
        if not code and line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])])
        elif rows:
            found.append((number - len(rows), [rows[0], *rows[2:]]))
            rows = []
    return found


def is_measured(rows: list[list[str]]) -> bool:
    """Whether most cells beside the first column are numbers, with units, or empty."""
    cells = [cell for row in rows[1:] for cell in row[1:]]
    short = [
        cell in ("", "-") or (re.search(r"\d", cell) and len(cell.split()) < 5) for cell in cells
    ]
    return sum(map(bool, short)) > 0.6 * len(cells)


def test_tables_are_narrow():
    """In README and docs/: few columns and short cells, except where most cells are numbers."""
    checked, found = 0, []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        name = path.relative_to(ROOT)
        for line, rows in tables(path.read_text(encoding="utf-8")):
            checked += 1
            if len(rows[0]) > MOST_COLUMNS and not is_measured(rows):
                found.append(f"{name}:{line}: {len(rows[0])} columns, at most {MOST_COLUMNS}")
            words = max(len(cell.split()) for row in rows for cell in row)
            if words > MOST_WORDS:
                found.append(f"{name}:{line}: a cell of {words} words, at most {MOST_WORDS}")
    assert checked >= 2
    assert not found, "\n" + "\n".join(found)
