"""The worked example of CONTRIBUTING.md: the backend runs, and the diffs fit the files."""

import re
import sys
import textwrap
import types
from pathlib import Path

import torch
from tolerance import as_accurate_as

import fastseq
from fastseq.ops.queue_nce import op

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLE = PAGE.split("## Add a backend to an op")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", EXAMPLE, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_backend_equals_the_definition(monkeypatch):
    (code,) = blocks("python")
    name = "fastseq.ops.queue_nce.mine"
    module = types.ModuleType(name)
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(op, "resolve_backend", lambda *call: ("mine", "for the test"))
    q, positives, queue = torch.randn(3, 8), torch.randn(3, 2, 8), torch.randn(50, 8)

    def loss_and_grad(backend: str, dtype: torch.dtype = torch.float32):
        x = q.to(dtype).requires_grad_()
        with monkeypatch.context() as context:
            if backend == "reference":
                context.setattr(op, "resolve_backend", lambda *call: ("reference", "named"))
            loss = fastseq.queue_nce(x, positives.to(dtype), queue.to(dtype), backend=backend)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    truth = loss_and_grad("reference", torch.float64)
    as_accurate_as(loss_and_grad("mine"), loss_and_grad("reference"), truth)


def test_the_diffs_fit_the_files():
    sources = ["fastseq/ops/common/dispatch.py", "fastseq/ops/queue_nce/op.py"]
    diffs = blocks("diff")
    for path, diff in zip(sources, diffs, strict=True):
        there = [line.strip() for line in (ROOT / path).read_text("utf-8").splitlines()]
        old = [line[1:].strip() for line in diff.splitlines() if not line.startswith("+")]
        assert old
        for line in old:
            assert line in there, f"{path}: {line}"
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
