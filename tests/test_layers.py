"""Every test that starts a process or compiles has a marker with which `make quick` leaves it out.

Determined from the source: the names that a test uses, and recursively the names that those
functions, fixtures and constants of tests/ use. Code outside tests/ is not followed.
"""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NEEDS = {
    "subprocess.run": "process",
    "subprocess.check_output": "process",
    "subprocess.check_call": "process",
    "subprocess.Popen": "process",
    "mp.spawn": "process",
    "os.fork": "process",
    "multiprocessing.get_context": "process",
    "mp.get_context": "process",
    "torch.compile": "compile",
    "torch.library.opcheck": "compile",
    "triton.compile": "compile",
    "compile_all": "compile",
}


class Module:
    """The definition of each top-level name of a file, and the files from which it imports."""

    def __init__(self, text: str) -> None:
        self.words: dict[str, set[str]] = {}  # names used by the definition of a name
        self.marks: dict[str, set[str]] = {}  # markers of its tests
        self.imported: dict[str, tuple[str, str]] = {}  # name here -> (module, name there)
        everywhere: set[str] = set()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.words[node.name] = named(node)
                if node.name.startswith("test_"):
                    self.marks[node.name] = set().union(*map(marks, node.decorator_list))
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self.words |= dict.fromkeys(named(target), named(node))
                if "pytestmark" in named(node):
                    everywhere = marks(node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (node.module, alias.name)
        for has in self.marks.values():
            has |= everywhere


def named(node: ast.AST) -> set[str]:
    """All names in it: plain and dotted names, and arguments (which may be fixtures)."""
    nodes = list(ast.walk(node))
    dotted = {_dotted(n) for n in nodes if isinstance(n, (ast.Name, ast.Attribute))}
    return {n.arg for n in nodes if isinstance(n, ast.arg)} | dotted - {""}


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def marks(node: ast.AST) -> set[str]:
    return {n.removeprefix("pytest.mark.") for n in named(node) if n.startswith("pytest.mark.")}


@functools.cache
def load() -> dict[str, Module]:
    """Keyed by path, such as ops.scl.cases and training.processes."""
    files = {path.relative_to(TESTS).with_suffix(""): path for path in sorted(TESTS.rglob("*.py"))}
    return {".".join(k.parts): Module(path.read_text("utf-8")) for k, path in files.items()}


@functools.cache
def find(modules: tuple[str, ...], name: str) -> str | None:
    """``name`` may lack the folder: training.processes is imported as processes there."""
    return next((k for k in modules if k == name or k.endswith(f".{name}")), None)


def needs(modules: dict[str, Module], module: str, test: str) -> set[str]:
    """The markers that the test needs."""
    found, seen, left, files = set(), set(), [(module, test)], tuple(modules)
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        module, name = find(files, here[0]), here[1]
        if module is None:  # outside tests/
            continue
        one = modules[module]
        if name in one.imported:
            left.append(one.imported[name])
        for word in one.words.get(name, ()):
            if word in NEEDS:
                found.add(NEEDS[word])
            owner, _, last = word.rpartition(".")
            if owner in one.imported:  # from ops.soft_dtw import test_forbidden
                left.append((".".join(one.imported[owner]).rstrip("."), last))
            elif word in one.words or word in one.imported:
                left.append((module, word))
            else:  # a fixture?
                left += [(c, word) for c in conftests(modules, module) if word in modules[c].words]
    return found


def conftests(modules: dict[str, Module], module: str) -> list[str]:
    folders = module.split(".")[:-1]
    above = (".".join([*folders[:n], "conftest"]) for n in range(len(folders) + 1))
    return [name for name in above if name in modules]


def unmarked(modules: dict[str, Module]) -> list[str]:
    """Tests that lack a marker they need. Tests in gpu/ run only on a GPU and are exempt."""
    return [
        f"{name}.{test}: {marker}"
        for name, one in modules.items()
        if not name.startswith("gpu.")
        for test, has in one.marks.items()
        for marker in sorted(needs(modules, name, test) - has)
    ]


def test_what_starts_processes_or_compiles_is_marked():
    assert unmarked(load()) == []


def test_files_of_kernels_are_marked():
    files = {name: one for name, one in load().items() if name.endswith(".test_triton")}
    assert len(files) >= 4
    for name, one in files.items():
        assert [test for test, has in one.marks.items() if "interpreter" not in has] == [], name


HELPER = "import subprocess\ndef run(*words):\n    return subprocess.run(words)\n"
TEXT = """
import pytest
from helper import run

@pytest.fixture
def library():
    return run("g++")

{mark}
def test_library(library):
    pass
"""


@pytest.mark.parametrize(
    ("mark", "wrong"),
    [
        ("", ["test_it.test_library: process"]),
        ("@pytest.mark.compile", ["test_it.test_library: process"]),
        ("@pytest.mark.process", []),
        ("pytestmark = [pytest.mark.process, pytest.mark.interpreter]", []),
    ],
)
def test_a_fixture_that_calls_a_helper_counts(mark, wrong):
    modules = {"helper": Module(HELPER), "test_it": Module(TEXT.format(mark=mark))}
    assert unmarked(modules) == wrong
