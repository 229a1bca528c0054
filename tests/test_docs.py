"""The snippets of docs/ run as they stand and print what their page says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
PAGE = (ROOT / "docs/papers_and_code.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.DOTALL)


def _snippets(file: Path) -> list:
    """Code and what it prints, named after the page and the section."""
    text, found = file.read_text(), []
    for match in BLOCK.finditer(text):
        section = re.findall(r"^## (.*)", text[: match.start()], re.MULTILINE)[-1]
        name = f"{file.stem}-{len(found)}-{section.split()[0].strip('`')}"
        marks = [pytest.mark.compile] if "torch.compile" in match[1] else []
        found.append(pytest.param(name, *match.groups(), id=name, marks=marks))
    return found


SNIPPETS = [s for file in sorted((ROOT / "docs").glob("*.md")) for s in _snippets(file)]


@pytest.mark.parametrize(("name", "code", "said"), SNIPPETS)
def test_snippets_print_what_the_page_says(name, code, said, capsys, tmp_path, monkeypatch):
    """Each with its own names; in this process, since importing torch takes longer than most."""
    assert said, "a snippet without its output"
    if "training.evaluation" in code:
        pytest.importorskip("sklearn", reason='needs scikit-learn: pip install "fastseq[train]"')
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert NUMBER.sub("x", out) == NUMBER.sub("x", said)
    got, promised = ([float(x) for x in NUMBER.findall(text)] for text in (out, said))
    assert got == pytest.approx(promised, rel=1e-3, abs=2e-4)


def test_every_loss_has_a_section_with_a_snippet():
    import fastseq

    losses = {name for name in fastseq.__all__ if name.endswith(("_loss", "_nce", "soft_dtw"))}
    for name in losses | {"contrastive_idm"}:
        shown = any(f"fastseq.{name}(" in code for code, _ in BLOCK.findall(PAGE))
        assert shown or name == "vclr_loss", name  # a sum of others
        assert f"`{name}`" in PAGE, name


def test_the_table_leads_to_the_sections():
    slugs = set()
    for title in re.findall(r"^## (.*)", PAGE, re.MULTILINE):
        slugs.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == slugs
