"""Imports modules as in a process that lacks other modules, without starting one (which would
import torch).
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def imported_anew(name: str, *, lacking: tuple[str, ...]) -> Iterator[ModuleType]:
    """``name`` and its submodules, imported once more while ``lacking`` cannot be imported."""
    importlib.import_module(name)
    package, _, last = name.rpartition(".")
    owners = {package: getattr(sys.modules[package], last)} if package else {}
    before = {known: sys.modules.pop(known) for known in within(name, *lacking)}
    sys.modules |= dict.fromkeys(lacking)
    try:
        yield importlib.import_module(name)
    finally:
        for known in within(name, *lacking):
            del sys.modules[known]
        sys.modules |= before
        for owner, module in owners.items():  # the import set the new module as its attribute
            setattr(sys.modules[owner], last, module)


def within(*packages: str) -> list[str]:
    starts = tuple(f"{package}." for package in packages)
    return [known for known in sys.modules if f"{known}.".startswith(starts)]
