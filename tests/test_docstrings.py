"""Docstrings and messages of the package: examples run, advice refers only to installed modules."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastseq


def _modules_with_examples() -> dict[str, list[doctest.DocTest]]:
    found = {}
    for info in pkgutil.walk_packages(fastseq.__path__, "fastseq."):
        if info.name.rsplit(".", 1)[1].startswith(("_", "triton")):
            continue
        tests = doctest.DocTestFinder().find(importlib.import_module(info.name))
        found |= {test.name: test for test in tests if test.examples}
    return found


EXAMPLES = _modules_with_examples()


def test_the_public_losses_have_examples():
    assert {"fastseq.ops.scl.op.scl_loss", "fastseq.nn.contrastive.SCLLoss"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    output = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(EXAMPLES[name], out=output.append)
    assert not runner.failures, "".join(output)


def _strings() -> list[tuple[str, int, str]]:
    """(file, line, text) of every string in the package, docstrings too."""
    return [
        (path.name, node.lineno, node.value)
        for path in sorted(Path(fastseq.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_no_message_names_a_module_of_training():
    """`training/` is not in the wheel, so users of the package could not follow such advice."""
    assert len(_strings()) > 1000
    assert [found for found in _strings() if re.search(r"\btraining\.\w", found[2])] == []


def test_what_messages_name_exists():
    names = {name for *_, text in _strings() for name in re.findall(r"\bfastseq(?:\.\w+)+", text)}
    assert {"fastseq.video.transcode", "fastseq.scl_loss"} <= names
    for name in names - {"fastseq._C"}:  # exists only where nvcc was
        pkgutil.resolve_name(name)  # raises
