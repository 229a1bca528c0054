"""The snippets of docs/ run as they stand and print what the page says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
PAGE = (ROOT / "docs/papers_and_code.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\n(```text\n(.*?)```)?", PAGE, re.DOTALL)


def _title(place: int) -> str:
    before = PAGE[: PAGE.index(SNIPPETS[place][0])]
    return f"{place}-{re.findall(r'^## (.*)', before, re.MULTILINE)[-1].split()[0].strip('`')}"


# Each with names of its own, in one process: importing torch takes longer than most of them.
RUN = """
import contextlib, io, json, sys, traceback
results = []
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
            error = None
        except BaseException:
            error = traceback.format_exc()
    results.append((out.getvalue(), error))
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def printed():
    """Output and error of every snippet."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([code for code, *_ in SNIPPETS]),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.process
@pytest.mark.parametrize("place", range(len(SNIPPETS)), ids=_title)
def test_snippets_print_what_the_page_says(printed, place):
    code, _, said = SNIPPETS[place]
    assert said, "a snippet without its output"
    if "training.evaluation" in code:
        pytest.importorskip("sklearn", reason='needs scikit-learn: pip install "fastseq[train]"')
    out, error = printed[place]
    assert error is None, error
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
