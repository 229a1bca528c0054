"""The pages of docs/gallery run, with small sizes; their pictures and drawings are committed."""

import re
from pathlib import Path

import pytest

from docs.tools import drawings, gallery

pytest.importorskip("matplotlib", reason='needs matplotlib: pip install "fastseq[train]"')
pytest.importorskip("scipy", reason='needs scipy: pip install "fastseq[train]"')

PAGES = sorted(gallery.PAGES.glob("*.md"))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs_and_prints_what_it_shows(page, tmp_path):
    """Up to the first block that is made small, the numbers are those of the page."""
    same = True
    for block, printed in gallery.run(page, tmp_path, quick=True):
        assert bool(printed) == (block["said"] is not None), block["code"]
        if printed and same:
            assert NUMBER.sub("x", printed) == NUMBER.sub("x", block["said"])
            assert numbers(printed) == pytest.approx(numbers(block["said"]), rel=5e-3, abs=2e-2)
        elif printed:
            assert printed.splitlines()[0].split()[0] == block["said"].splitlines()[0].split()[0]
            assert "False" not in printed
        same = same and not block["quick"]
    shown = {Path(name).name for name in gallery.pictures(page.read_text("utf-8"))}
    assert shown == {path.name for path in (tmp_path / "pictures").iterdir()}
    assert shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_are_committed_small_and_follow_the_scheme(page):
    for name in gallery.pictures(page.read_text("utf-8")):
        text = (page.parent / name).read_text("utf-8")
        assert len(text) < 100_000, name
        assert "<text" in text, name
        assert "prefers-color-scheme: dark" in text, name


def test_there_are_four_pages_with_output_and_pictures():
    assert len(PAGES) == 4
    for page in PAGES:
        text = page.read_text("utf-8")
        assert gallery.pictures(text)
        assert all(block["said"] != "" for block in gallery.BLOCK.finditer(text))


def test_an_unknown_page_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["memory_over_t", "nopage"])
    assert "no page nopage in docs/gallery; there are align_two_clips" in capsys.readouterr().err


def test_rewriting_puts_in_what_a_page_prints(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    code = "```python\nn = 3\n```\n\n<!-- quick\nn = 1\n-->\n\n```python\nprint(n)\n```\n\n"
    page.write_text(f"{code}```text\nstale\n```\nEnd.\n")
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    gallery.rewrite(page)
    assert page.read_text() == f"{code}```text\n3\n```\nEnd.\n"
    assert [printed for _, printed in gallery.run(page, tmp_path, quick=True)] == ["", "1\n"]


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_are_those_of_the_script(name):
    fresh = (drawings.FOLDER / f"{name}.svg").read_text("utf-8") == drawings.draw(name)
    assert fresh, f"{name}.svg is stale; to fix: python -m docs.tools.drawings"
    page = (gallery.DOCS / "how_the_kernels_work.md").read_text("utf-8")
    assert f"](pictures/{name}.svg)" in page
