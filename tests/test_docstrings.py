"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import importlib
import pkgutil

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
    assert {"fastseq.ops.scl.op.scl_loss", "fastseq.nn.SCLLoss"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    output = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(EXAMPLES[name], out=output.append)
    assert not runner.failures, "".join(output)
