"""The worked example of CONTRIBUTING.md: the backend runs, and the diffs fit the files."""

import ast
import re
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from tolerance import as_accurate_as

import fastseq
from fastseq.ops.common import dispatch
from fastseq.ops.queue_nce import op

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLE = PAGE.split("## Add a backend to an op")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", EXAMPLE, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def patched(path: str, diff: str) -> str:
    """The source of a file after a diff of the page."""
    lines, old, new = (ROOT / path).read_text("utf-8").splitlines(), [], []
    for line in [*diff.splitlines(), "-"]:
        if line.startswith("-") and new:  # the next change begins
            where = [i for i, there in enumerate(lines) if there == old[0]]
            assert len(where) == 1, f"{path}: {old}"
            assert lines[where[0] : where[0] + len(old)] == old
            lines[where[0] : where[0] + len(old)] = new
            old, new = [], []
        (old if line.startswith("-") else new).append(line[1:])
    return "\n".join(lines)


@pytest.fixture
def example(monkeypatch):
    """The three files of the example, in place."""
    (code,) = blocks("python")
    in_dispatch, in_op = blocks("diff")
    mine = types.ModuleType("fastseq.ops.queue_nce.mine")
    exec(code, mine.__dict__)
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    changed = types.ModuleType(dispatch.__name__)
    exec(patched("fastseq/ops/common/dispatch.py", in_dispatch), changed.__dict__)
    monkeypatch.setattr(dispatch, "BACKENDS", changed.BACKENDS)
    monkeypatch.setattr(dispatch, "backend_status", changed.backend_status)
    # The whole of op.py would register its operators a second time.
    tree = ast.parse(patched("fastseq/ops/queue_nce/op.py", in_op))
    tree.body = [
        node
        for node in tree.body
        if (isinstance(node, ast.ImportFrom) and node.module == dispatch.__name__)
        or (isinstance(node, ast.FunctionDef) and node.name == "resolve_backend")
    ]
    namespace = {"torch": torch}
    exec(compile(tree, "op.py", "exec"), namespace)
    monkeypatch.setattr(op, "resolve_backend", namespace["resolve_backend"])


def loss_and_grad(backend: str, dtype: torch.dtype = torch.float32):
    make = torch.Generator().manual_seed(0)
    q, positives, queue = (
        torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)
        for shape in ((3, 8), (3, 2, 8), (50, 8))
    )
    loss = fastseq.queue_nce(q.requires_grad_(), positives, queue, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, q)[0]


@pytest.mark.usefixtures("example")
def test_the_backend_equals_the_definition():
    truth = loss_and_grad("reference", torch.float64)
    as_accurate_as(loss_and_grad("mine"), loss_and_grad("reference"), truth)


@pytest.mark.usefixtures("example")
def test_the_backend_can_be_named(monkeypatch):
    call = "cpu", torch.float32
    monkeypatch.delenv("FASTSEQ_BACKEND", raising=False)
    assert dispatch.backend_status("mine").available
    assert op.resolve_backend("auto", *call)[0] == "torch"
    assert op.resolve_backend("mine", *call)[0] == "mine"
    with pytest.raises(ValueError, match="'mine'"):
        op.resolve_backend("other", *call)
    monkeypatch.setenv("FASTSEQ_BACKEND", "mine")
    assert op.resolve_backend("auto", *call) == ("mine", "FASTSEQ_BACKEND")
    assert fastseq.scl_loss(torch.eye(4), torch.eye(4)).isfinite()  # it has no such backend


def test_the_page_names_lists_that_tests_have():
    """The table of "To stay": each name is assigned in each file that is said to have it."""
    table = EXAMPLE.split("### To stay")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert {folder for folder, _ in rows} >= {"queue_nce", "contrastive_idm", "scl", "soft_dtw"}
    for folder, places in rows:
        named = re.findall(r"`(\w+)` in ((?:`\w+\.py`(?:, )?)+)", places)
        assert named, folder
        for name, files in named:
            for file in re.findall(r"`(.*?)`", files):
                source = (ROOT / "tests/ops" / folder / file).read_text("utf-8")
                assert re.search(rf"^{name} = ", source, re.MULTILINE), (folder, file, name)
    assert 'BACKENDS = ["reference", "torch"]' in (
        ROOT / "tests/ops/queue_nce/test_values.py"
    ).read_text("utf-8")


def test_names_of_files_exist():
    named = re.findall(r"`((?:fastseq|tests|docs|csrc|training)/[\w/]+\.(?:py|md|h|cpp))`", PAGE)
    assert len(named) >= 10
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == ["fastseq/ops/queue_nce/mine.py"]


def test_every_target_is_described():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"docs", "gallery"} <= set(targets)
    for target in set(targets) - {"demo", "help", "clean"}:
        assert re.search(rf"^make {target} ", PAGE, re.MULTILINE), target
