"""``python -m docs.tools.api [--check]``: write docs/api.md from the docstrings of public names.

``--check`` writes nothing and ends with status 1 where the page is stale.
"""

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/api.md"
COMMAND = "python -m docs.tools.api"
INTRO = f"""# API

The public names of `fastseq`, from their docstrings. Written by `{COMMAND}`:
change the docstring, not this page. Shapes: N sequences or videos, T and S frames, D channels.
"""
# Module, title, what the section says before its table.
MODULES = (
    ("fastseq", "Functions", "Losses and alignments of tensors of frame embeddings."),
    ("fastseq.nn", "Modules", "`fastseq.nn`: options go to the constructor, tensors to the call."),
    (
        "fastseq.video",
        "Video",
        "`fastseq.video` reads and augments clips: [guide](../fastseq/video/README.md). "
        'It needs `pip install "fastseq[video]"`.',
    ),
    ("fastseq.compat.carl", "Drop-in for CARL_code", "`from fastseq.compat.carl import SCL`"),
    ("fastseq.compat.lav", "Drop-in for LAV", "`from fastseq.compat.lav import LAV`"),
    (
        "fastseq.compat.softdtw",
        "Drop-in for pytorch-softdtw-cuda",
        "`from fastseq.compat.softdtw import SoftDTW`",
    ),
)
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?|Notes?):\s*$")
ITEM = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)")
ERROR = re.compile(r"(?:^|(?<=[.;] ))((?:[A-Z]\w*(?:Error|Videos)(?:, )?)+): ", re.MULTILINE)


def public(module: str) -> dict[str, object]:
    """Public names and what they stand for; submodules and the version are left out."""
    home = importlib.import_module(module)
    names = getattr(home, "__all__", None) or [
        name
        for name, value in vars(home).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    found = {name: getattr(home, name) for name in names if not name.startswith("__")}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def title(module: str, name: str) -> str:
    """As a user writes it after ``fastseq.``"""
    return f"{module}.{name}".removeprefix("fastseq.")


def anchor(heading: str) -> str:
    """Of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(module: str) -> dict[str, str]:
    """Full name -> anchor of its section; names of ``module`` also as they are."""
    found = {
        f"{home}.{name}": anchor(title(home, name)) for home, *_ in MODULES for name in public(home)
    }
    return found | {name: found[f"{module}.{name}"] for name in public(module)}


def signature(name: str, value: object) -> str:
    """One line, or one parameter a line; empty where there is none worth showing."""
    if inspect.isclass(value) and (
        Protocol in value.__bases__ or issubclass(value, BaseException | dict)
    ):
        return ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    returns = ""
    if found.return_annotation not in (inspect.Signature.empty, None) and not inspect.isclass(
        value
    ):
        given = found.return_annotation
        returns = f" -> {given if isinstance(given, str) else inspect.formatannotation(given)}"
    parts, kinds = [], [p.kind for p in found.parameters.values()]
    for number, parameter in enumerate(found.parameters.values()):
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not (
            {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL} & set(kinds[:number])
        ):
            parts.append("*")
        parts.append(_unquoted(parameter))
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) > 96:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    line = line.replace("torch.Tensor", "Tensor").replace("collections.abc.", "")
    return re.sub(r"<([\w.]+)[^<>]* at 0x[0-9a-f]+>", r"<\1>", line).replace("'", '"')


def _unquoted(parameter: inspect.Parameter) -> str:
    """Annotations are text under ``from __future__ import annotations``."""
    text, given = str(parameter), parameter.annotation
    return text.replace(repr(given), given, 1) if isinstance(given, str) else text


def summary(text: str) -> str:
    """First sentence of a docstring."""
    first = " ".join(text.split("\n\n")[0].split()).removesuffix("::")
    for end in re.finditer(r"(?<=[a-z0-9)`])(?<!\beq)(?<!\bal)[.:;] ", first):
        sentence = first[: end.start()]
        if sentence.count("(") == sentence.count(")"):
            return sentence + "."
    return first.rstrip(".:") + "."


def markdown(text: str, where: dict[str, str]) -> str:
    """A docstring (of Google's style) as Markdown; ``where``: see `anchors`."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if SECTION.match(line):
            parts.append((line.strip().rstrip(":"), []))
        elif parts[-1][0] and line.strip() and not line.startswith(" "):
            parts.append(("", [line]))  # prose continues after a section
        else:
            parts[-1][1].append(line)
    return "\n\n".join(filter(None, (_section(head, lines, where) for head, lines in parts)))


def _section(head: str, lines: list[str], where: dict[str, str]) -> str:
    body = inspect.cleandoc("\n".join(lines)) if head else "\n".join(lines).strip()
    if not body:
        return ""
    if head.startswith("Example"):
        return f"**Example**\n\n```pycon\n{body}\n```"
    if head in ("Args", "Attributes"):
        body = _items(body, where)
    elif head == "Raises":
        body = "\n".join(f"- {_prose(one, where)}" for one in _errors(body))
    else:
        body = _prose(body, where)
    return f"**{'Parameters' if head == 'Args' else head}**\n\n{body}" if head else body


def _items(body: str, where: dict[str, str]) -> str:
    """``name: text`` entries as a list; other lines continue the entry above."""
    entries: list[list[str]] = []
    for line in body.splitlines():
        if (not line.startswith(" ") and ITEM.match(line)) or not entries:
            entries.append([line])
        else:
            entries[-1].append(line.strip())
    shown = []
    for entry in entries:
        text = " ".join(filter(None, entry))
        match = ITEM.match(text)
        if match is None:
            shown.append(f"- {_prose(text, where)}")
            continue
        names = ", ".join(f"`{name}`" for name in match[1].split(", "))
        shown.append(f"- {names}: {_prose(match[2], where)}")
    return "\n".join(shown)


def _errors(body: str) -> list[str]:
    """``TypeError: text. ValueError: text.``, however broken into lines, one by one."""
    text = " ".join(body.split())
    starts = [match.start() for match in ERROR.finditer(text)]
    if not starts or starts[0]:
        return [text]
    ends = [*starts[1:], len(text)]
    return [
        ERROR.sub(r"`\1`: ", text[a:b].strip(), count=1) for a, b in zip(starts, ends, strict=True)
    ]


def _prose(text: str, where: dict[str, str]) -> str:
    """Paragraphs; after ``::`` an indented block, which becomes a block of code."""
    lines, out, code = text.splitlines(), [], []
    literal = False
    for line in [*lines, "end"]:
        if literal and (line.startswith((" ", "\t")) or not line.strip()):
            code.append(line)
            continue
        if code:
            block = inspect.cleandoc("\n" + "\n".join(code))
            out += ["", "```text", block, "```", ""]
            literal, code = False, []
        if line.rstrip().endswith("::"):
            literal, line = True, line.rstrip()[:-1]
        if (
            out
            and re.match(r"- ", line)
            and out[-1].strip()
            and not out[-1].startswith(("- ", " "))
        ):
            out.append("")
        out.append(_inline(line, where))
    return "\n".join(out[:-1]).strip()


def _inline(line: str, where: dict[str, str]) -> str:
    line = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", line)
    pieces = re.split(r"(`{1,2}[^`]+`{1,2})", line)
    for i, piece in enumerate(pieces):
        if i % 2:
            name = piece.strip("`")
            target = where.get(name)
            pieces[i] = f"[`{name}`](#{target})" if target else f"`{name}`"
        else:  # not HTML, not emphasis
            piece = re.sub(r"<(?=[a-zA-Z/!])", "&lt;", piece)
            pieces[i] = re.sub(r"(?<!^)\*(?=\w)", r"\\*", piece)
    return "".join(pieces)


def own_methods(value: type) -> dict[str, object]:
    """Public methods and properties that the class itself documents."""
    found = {}
    for name, member in vars(value).items():
        plain = getattr(member, "__func__", member)
        if name.startswith("_") or not (inspect.isfunction(plain) or isinstance(member, property)):
            continue
        if plain.__doc__ and getattr(plain, "__module__", "fastseq").startswith("fastseq"):
            found[name] = plain
    return found


def section(module: str, name: str, value: object, where: dict[str, str]) -> str:
    heading = title(module, name)
    parts = [f"### {heading}"]
    if not callable(value):
        return "\n\n".join([*parts, f"```py\n{name} = {value!r}\n```".replace("'", '"')])
    shown = signature(name, value)
    if shown:
        parts.append(f"```py\n{shown}\n```")
    parts.append(markdown(inspect.getdoc(value) or "", where))
    source = re.match(r"fastseq\.ops\.(\w+)", getattr(value, "__module__", ""))
    if source and (ROOT / f"fastseq/ops/{source[1]}/README.md").exists():
        path = f"../fastseq/ops/{source[1]}/README.md"
        parts.append(f"Formula, gradient, memory and backends: [{source[1]}]({path}).")
    if inspect.isclass(value):
        for method, member in own_methods(value).items():
            call = method if isinstance(member, property) else signature(method, member) or method
            parts.append(f"**{name}.{method}**\n\n```py\n{call}\n```")
            parts.append(markdown(inspect.getdoc(member) or "", where))
    return "\n\n".join(part for part in parts if part)


def page() -> str:
    out = [INTRO.rstrip()]
    for module, heading, text in MODULES:
        names, where = public(module), anchors(module)
        out.append(f"## {heading}\n\n{text}")
        rows = ["| Name | What it is |", "|---|---|"]
        for name, value in names.items():
            doc = (inspect.getdoc(value) or "") if callable(value) else f"{value!r}"
            text = _inline(summary(doc), where).replace("|", "\\|")
            rows.append(f"| [`{title(module, name)}`](#{where[f'{module}.{name}']}) | {text} |")
        out.append("\n".join(rows))
        out += [section(module, name, value, where) for name, value in names.items()]
    text = "\n\n".join(out) + "\n"
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is stale")
    if not parser.parse_args(argv).check:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != page():
        sys.exit(f"docs/api.md is stale; to fix: {COMMAND}")


if __name__ == "__main__":
    main()
