"""The rooms of training/: the README shows them, imports go downward, no command is imported."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "training"

# From the top down: a module imports from its own room and from floors below. The recipe is above
# data and models, because its keys use the choices that those define.
FLOORS = [
    ["commands"],
    ["pages", "labelling"],
    ["studies", "datasets"],
    ["carl_code", "demo", "localisation"],
    ["evaluation"],
    ["loop"],
    ["runs"],
    ["recipe"],
    ["data", "models"],
    ["support"],
]
FLOOR_OF = {room: number for number, rooms in enumerate(reversed(FLOORS)) for room in rooms}

COMMANDS = {f"training.{path.stem}" for path in TRAINING.glob("*.py")} - {"training.__init__"}
COMMANDS |= {"training.demo.__main__", "training.carl_code.__main__"}

# Commands whose purpose is to run others, with the same arguments as from a shell.
RUNS = {
    "training.demo.__main__": {"prepare", "train", "evaluate", "report"},
    # In a child process for each training, or in this one with --jobs 1.
    "training.compare": {"prepare", "train"},
    "training.per_action": {"train"},
    "training.sweep": {"train"},
}


def modules() -> dict[str, Path]:
    """Every module of training/ by its name; a package by its name."""
    found = {}
    for path in sorted(TRAINING.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(source: str) -> set[str]:
    """Modules of training/ that a source file imports, also inside functions, but not for type
    checkers.
    """
    return {name for name in _names(ast.parse(source)) if name.split(".")[0] == "training"}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for child in node.orelse:
            yield from _names(child)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in MODULES else f"{node.module}"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def room_of(module: str) -> str:
    return "commands" if module in COMMANDS else module.split(".")[1]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, training.train", {"training.train"}),
        ("from training import train", {"training.train"}),
        ("from training.train import main", {"training.train"}),
        ("def f():\n    from training.runs import log", {"training.runs.log"}),
        ("try:\n    import training.memory\nexcept ImportError:\n    pass", {"training.memory"}),
        ("if TYPE_CHECKING:\n    import training.train\nelse:\n    import training", {"training"}),
    ],
)
def test_imports_are_found(source, expected):
    assert imported(source) == expected


def test_no_module_imports_a_command():
    found = {
        name: others
        for name, path in MODULES.items()
        if (others := {other for other in imported(path.read_text()) & COMMANDS if other != name})
    }
    allowed = {name: {f"training.{other}" for other in others} for name, others in RUNS.items()}
    assert found == allowed


def test_rooms_import_downward():
    upward = []
    for name, path in MODULES.items():
        if name == "training":
            continue
        room = room_of(name)
        for other in sorted(imported(path.read_text()) - {"training"} - COMMANDS):
            if room_of(other) != room and FLOOR_OF[room_of(other)] >= FLOOR_OF[room]:
                upward.append(f"{name} ({room}) imports {other}")
    assert not upward


def test_the_readme_shows_the_rooms():
    """Exactly the files and folders at the top of training/, rooms from the top floor down."""
    text = (TRAINING / "README.md").read_text()
    (tree,) = re.findall(r"^```\ntraining/\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shown = []
    for line in tree.splitlines():
        shown += re.match(r"(?:\s+(?:[\w-]+/|\w+\.(?:py|md))(?!\S))*", line)[0].split()
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in TRAINING.iterdir()
        if path.name != "__pycache__"
    }
    assert sorted(shown) == sorted(there)
    rooms = [name.rstrip("/") for name in shown if name.rstrip("/") in FLOOR_OF]
    floors = [FLOOR_OF[room] for room in rooms]
    assert floors == sorted(floors, reverse=True)
