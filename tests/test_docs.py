"""The snippets of docs/ run as they stand and print what the page says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
PAGE = (ROOT / "docs/papers_and_code.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\n(```text\n(.*?)```)?", PAGE, re.DOTALL)


def _title(place: int) -> str:
    before = PAGE[: PAGE.index(SNIPPETS[place][0])]
    return f"{place}-{re.findall(r'^## (.*)', before, re.MULTILINE)[-1].split()[0].strip('`')}"


@pytest.mark.parametrize("place", range(len(SNIPPETS)), ids=_title)
def test_snippets_print_what_the_page_says(place, capsys):
    """Each with names of its own; in this process, since importing torch takes longer than most."""
    code, _, said = SNIPPETS[place]
    assert said, "a snippet without its output"
    if "training.evaluation" in code:
        pytest.importorskip("sklearn", reason='needs scikit-learn: pip install "fastseq[train]"')
    exec(compile(code, _title(place), "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert NUMBER.sub("x", out) == NUMBER.sub("x", said)
    got, promised = ([float(x) for x in NUMBER.findall(text)] for text in (out, said))
    assert got == pytest.approx(promised, rel=1e-3, abs=2e-4)


def test_every_loss_has_a_section_with_a_snippet():
    import fastseq

    losses = {name for name in fastseq.__all__ if name.endswith(("_loss", "_nce", "soft_dtw"))}
    for name in losses | {"contrastive_idm"}:
        shown = any(f"fastseq.{name}(" in code for code, *_ in SNIPPETS)
        assert shown or name == "vclr_loss", name  # a sum of others
        assert f"`{name}`" in PAGE, name


def test_the_table_leads_to_the_sections():
    slugs = set()
    for title in re.findall(r"^## (.*)", PAGE, re.MULTILINE):
        slugs.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == slugs
