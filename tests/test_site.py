"""The site: each page has a place in it, nothing comes from elsewhere, links lead somewhere."""

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from built_site import Page, site  # noqa: F401, a fixture

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason='needs mkdocs-material: pip install "fastseq[docs]"')


@pytest.fixture(scope="module")
def pages(site):  # noqa: F811
    found = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    found.pop("404.html")
    return found


def external(url: str) -> bool:
    return re.match(r"(?:[a-z]+:)?//", url) is not None


def target(page: str, url: str) -> tuple[str, str]:
    """File in the site and id that a link of ``page`` leads to."""
    path, _, part = unquote(url).partition("#")
    if not path:
        return page, part
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)), part


def test_every_page_is_in_the_navigation(pages):
    assert {"index.html", "api.html", "video.html", "data.html", "benchmarks.html"} <= set(pages)
    assert len([name for name in pages if name.startswith("ops/")]) >= 8
    named = {target("index.html", url)[0] for url in pages["index.html"].links}
    assert sorted(set(pages) - named) == []


def test_nothing_comes_from_another_server(site, pages):  # noqa: F811
    assert [(n, url) for n, page in pages.items() for url in page.resources if external(url)] == []
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert [u for u in re.findall(r"url\(['\"]?([^)'\"]+)", text) if external(u)] == []
        assert "@import" not in text


def test_links_and_resources_exist(site, pages):  # noqa: F811
    checked, missing = 0, []
    for name, page in pages.items():
        for url in page.links + page.resources:
            if external(url) or url.startswith(("mailto:", "data:", "javascript:")):
                continue
            path, part = target(name, url)
            path = "index.html" if path == "." else path
            checked += 1
            if not (site / path).is_file():
                missing.append(f"{name}: {url}")
            elif part and path in pages and part not in pages[path].ids | {"__skip"}:
                missing.append(f"{name}: {url} (no such section)")
    assert missing == []
    assert checked > 1000


def test_pictures_have_words_in_their_place(pages):
    images = [(name, image) for name, page in pages.items() for image in page.images]
    assert len(images) >= 15
    for name, image in images:
        assert len(image.get("alt") or "") >= 15, (name, image)


def test_no_markdown_is_left_over(site, pages):  # noqa: F811
    """Tables, lists and fences that GitHub shows and Python-Markdown takes for text."""
    for name in pages:
        html = (site / name).read_text("utf-8")
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", html, flags=re.DOTALL)
        assert re.findall(r"<p>(?:[^<]|<(?!/p>))*(?:\|---|```)", text) == [], name
        assert re.findall(r"\n- \S[^<]*", re.sub(r"<ul>.*?</ul>", "", text, flags=re.DOTALL)) == []
        assert re.findall(r"\]\([\w./#-]+\)", text) == [], name


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](../fastseq/ops/scl/README.md#floor)", "[a](ops/scl.md#floor)"),
        ("[a](../README.md#install)", "[a](index.md)"),
        ("[`a`](../fastseq/selftest.py)", "`a`"),
        ("[a\nb](../fastseq/video/README.md)", "[a\nb](video.md)"),
        ("[a](../fastseq/nothing.md)", "[a](../fastseq/nothing.md)"),
        ("[a](api.md#scl_loss)", "[a](api.md#scl_loss)"),
        ("[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("![a](pictures/memory.svg)", "![a](pictures/memory.svg)"),
    ],
)
def test_links_out_of_docs_are_rewritten(link, expected):
    from docs.tools import site as hooks

    class Files:
        def get_file_from_path(self, uri):
            return object() if uri in ("index.md", "api.md", "pictures/memory.svg") else None

    match = hooks.LINK.fullmatch(link)
    assert hooks.rewrite(match, ROOT / "docs/training.md", "training.md", Files()) == expected
