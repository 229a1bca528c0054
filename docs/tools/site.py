"""Hooks of mkdocs (mkdocs.yml): pages from outside docs/, and links that lead to them.

Files in docs/ link each other, and READMEs elsewhere, as GitHub follows links: relative to the
file. The READMEs become pages of the site here, pictures come along, and links are rewritten. A
link to a file that is not in the site, such as a module, becomes its text.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Page -> its file in the repository. Those in docs/ are found by mkdocs.
PAGES = {
    **{f"ops/{path.parent.name}.md": path for path in ROOT.glob("fastseq/ops/*/README.md")},
    "ops/soft_dtw_cuda.md": ROOT / "csrc/soft_dtw/README.md",
    "video.md": ROOT / "fastseq/video/README.md",
    "data.md": ROOT / "training/data/README.md",
    "benchmarks.md": ROOT / "benchmarks/README.md",
    **{
        f"results/{path.parent.name}/{path.stem.lower()}.md": path
        for path in ROOT.glob("benchmarks/results/*/*.md")
    },
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
# Files that have a page in docs/ instead, with its own sections.
INSTEAD = {"README.md": "docs/index.md", "training/README.md": "docs/training.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")  # over lines too
FENCED = re.compile(r"(^ *```[^\n]*\n.*?^ *```[ ]*$)", re.DOTALL | re.MULTILINE)
LIST = re.compile(r" *([-*]|1\.) +\S")


def on_files(files, config):
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
        for mark, _, target in LINK.findall(path.read_text("utf-8")):
            picture = path.parent / target
            if mark and picture.exists() and not picture.is_relative_to(ROOT / "docs"):
                uri = f"pictures/{relative(picture).replace('/', '-')}"
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    source = PAGES.get(uri, ROOT / "docs" / uri)

    def outside_code(text: str) -> str:
        return loose_lists(LINK.sub(lambda match: rewrite(match, source, uri, files), text))

    parts = FENCED.split(markdown)  # every other part is a block of code
    return "".join(part if i % 2 else outside_code(part) for i, part in enumerate(parts))


def loose_lists(text: str) -> str:
    """GitHub begins a list within a paragraph, Python-Markdown wants an empty line before it."""
    lines = []
    for line in text.split("\n"):
        if LIST.match(line) and lines and lines[-1].strip() and not in_list(lines):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def in_list(lines: list[str]) -> bool:
    """Whether the paragraph that the last line belongs to is an item of a list."""
    for line in reversed(lines):
        if LIST.match(line) or re.match(r" *\d+\. ", line):
            return True
        if not line.strip():
            return False
    return False


def rewrite(match: re.Match, source: Path, uri: str, files) -> str:
    mark, text, target = match.groups()
    path, _, part = target.partition("#")
    if not path or not (source.parent / path).exists():  # mkdocs reports what is broken
        return match[0]
    file = relative(source.parent / path)
    part = "" if file in INSTEAD else part
    there = site_uri(INSTEAD.get(file, file), files, picture=bool(mark))
    if there is None:
        return text
    link = posixpath.relpath(there, posixpath.dirname(uri) or ".")
    return f"{mark}[{text}]({link}{'#' * bool(part)}{part})"


def site_uri(path: str, files, picture: bool) -> str | None:
    """Where a file of the repository is in the site."""
    by_source = {relative(file): uri for uri, file in PAGES.items()}
    if path in by_source:
        return by_source[path]
    uri = path.removeprefix("docs/") if path.startswith("docs/") else None
    if picture and uri is None:
        uri = f"pictures/{path.replace('/', '-')}"
    return uri if uri is not None and files.get_file_from_path(uri) is not None else None


def relative(path: Path) -> str:
    return Path(os.path.normpath(path)).relative_to(ROOT).as_posix()
