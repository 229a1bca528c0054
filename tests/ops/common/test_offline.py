"""The tables of compiled kernels: unchanged rows are read, changed ones are compiled again."""

import ast
import json
import re
import shutil

import offline
import pytest

from ops.queue_nce.test_compile_offline import TABLE, core_cases

pytestmark = [pytest.mark.compile, pytest.mark.process]

CASE = next(case for case in core_cases() if case[0] == "loss")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The table of queue_nce as if written today, and a copy of the kernels it was made from."""
    for name in ("queue_nce", "common"):
        folder = tmp_path / "fastseq" / "ops" / name
        folder.mkdir(parents=True)
        for path in (offline.ROOT / "fastseq" / "ops" / name).glob("triton_*.py"):
            shutil.copy(path, folder)
    monkeypatch.setattr(offline, "ROOT", tmp_path)
    path = tmp_path / TABLE.path.name
    data = json.loads(TABLE.path.read_text())
    data["triton"] = pytest.importorskip("triton").__version__
    data["kernels"][TABLE.name(*CASE)]["digest"] = offline.digest(TABLE.job(CASE))
    path.write_text(json.dumps(data))
    monkeypatch.setattr(TABLE, "path", path)
    return path


@pytest.fixture
def compiled(monkeypatch, table):
    """Counts the compiled kernels; each gets the registers of the table, plus ``more``."""
    jobs, more, row = [], {}, json.loads(table.read_text())["kernels"][TABLE.name(*CASE)]

    def compile_all(some):
        jobs.extend(some)
        return [offline.without_digest(row) | more for _ in some]

    monkeypatch.setattr(offline, "compile_all", compile_all)
    return jobs, more


def add(table, file, line):
    with (table.parent / "fastseq/ops" / file).open("a") as code:
        code.write(line)


def check():
    TABLE.check([CASE], lambda *_: False)


def test_what_has_not_changed_is_read(compiled, table):
    add(table, "queue_nce/triton_kernels.py", "\n# a comment\n")
    check()
    assert not compiled[0]


@pytest.mark.parametrize("file", ["queue_nce/triton_kernels.py", "common/triton_tiles.py"])
def test_changed_code_is_compiled_anew(compiled, table, file):
    add(table, file, "\nNUMBER = 1\n")
    jobs, more = compiled
    with pytest.warns(UserWarning, match="kernels compiled anew: 1; to renew: "):
        check()
    assert jobs == [TABLE.job(CASE)]
    more["registers"] = 99
    with pytest.warns(UserWarning, match="anew"), pytest.raises(AssertionError, match="update"):
        check()


def test_changed_tiles_are_compiled_anew(compiled, monkeypatch):
    make = TABLE.make
    monkeypatch.setattr(
        TABLE, "make", lambda *a, **k: make(*a, **k) | {"options": {"num_warps": 8}}
    )
    with pytest.warns(UserWarning, match="anew"):
        TABLE.check([CASE], lambda *_: False)
    assert len(compiled[0]) == 1


def test_another_triton_compiles_everything(compiled, table):
    data = json.loads(table.read_text())
    table.write_text(json.dumps(data | {"triton": "0.0"}))
    compiled[1]["registers"] = 99  # not compared with the table of another version
    check()
    assert len(compiled[0]) == 1
    compiled[1]["spills"] = 1
    with pytest.raises(AssertionError, match="spills"):
        check()


def test_a_row_that_spills_fails(compiled, table):
    data = json.loads(table.read_text())
    data["kernels"][TABLE.name(*CASE)]["spills"] = 1
    table.write_text(json.dumps(data))
    with pytest.raises(AssertionError, match="spills"):
        check()
    assert not compiled[0]


def test_a_kernel_compiles_to_its_row():
    triton = pytest.importorskip("triton")
    data = json.loads(TABLE.path.read_text())
    (got,) = TABLE.measure([CASE]).values()
    offline.fits("", got)
    if triton.__version__ == data["triton"]:
        assert got == offline.without_digest(data["kernels"][TABLE.name(*CASE)])


def test_kernels_are_made_of_what_the_digest_covers():
    """Of fastseq, kernels import only triton_*.py of their op and of common, which the digest
    covers; those of sinkhorn also tcc's tiles, of which its table has a digest for each kernel.
    """
    files = sorted((offline.ROOT / "fastseq/ops").glob("*/triton_*.py"))
    assert len(files) >= 7
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                rooms = f"{path.parent.name}|common"
                if path.parent.name == "sinkhorn":
                    rooms += "|tcc"
                room = rf"fastseq\.ops\.({rooms})\.triton_\w+"
                assert re.fullmatch(rf"triton(\.language)?|math|os|{room}", name), (path, name)
