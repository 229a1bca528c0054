"""Modules as a process imports them that lacks others: without a process, which imports torch."""

import importlib
import sys
from types import ModuleType

import pytest


def import_anew(monkeypatch: pytest.MonkeyPatch, name: str, *, lacking: tuple[str, ...]):
    """Import ``name`` and what is in it once more, until the test ends, without ``lacking``."""
    package, _, last = name.rpartition(".")
    if package:  # which the import makes an attribute of it
        owner: ModuleType = importlib.import_module(package)
        monkeypatch.setattr(owner, last, getattr(owner, last), raising=True)
    for known in [known for known in sys.modules if within(known, (name, *lacking))]:
        monkeypatch.delitem(sys.modules, known)
    for module in lacking:
        monkeypatch.setitem(sys.modules, module, None)
    return importlib.import_module(name)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))
