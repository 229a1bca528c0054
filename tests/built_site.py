"""The site as `make docs` builds it, for tests; FASTSEQ_SITE names one that is there already."""

import os
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """Ids, links and resources of a page."""

    RESOURCES = ("img", "script", "iframe", "source", "video", "audio", "object", "embed")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids, self.links, self.resources, self.images = set(), [], [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.resources.append(found["href"])
        elif tag in self.RESOURCES and (found.get("src") or found.get("data")):
            self.resources.append(found.get("src") or found["data"])
        if tag == "img":
            self.images.append(found)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Folder of the site; any warning of mkdocs is an error (mkdocs.yml: strict)."""
    if os.environ.get("FASTSEQ_SITE"):
        return ROOT / os.environ["FASTSEQ_SITE"]
    pytest.importorskip("material", reason='needs mkdocs-material: pip install "fastseq[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder
