"""The commands that pages show can be given: options, recipe keys, extras and targets exist."""

import argparse
import importlib
import importlib.util
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from training.recipe.load import load_config
from training.recipe.schema import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*sorted(ROOT.glob("training/**/*.md")), ROOT / "fastseq/video/README.md"]
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A key in a code span: data.num_frames, loss.scl.weight; not a file of this look.
KEY = re.compile(
    r"(?<![\w/.-])((?:data|augmentation|model|loss|optim|train)"
    r"\.(?!py\b|pkl\b|csv\b|safetensors\b)[a-z]\w*(?:\.[a-z]\w*)?)(?![\w./(-])"
)


def spans(text: str) -> list[str]:
    """Code in running text."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def shell_lines(text: str) -> list[str]:
    """Lines of shell blocks, of indented blocks and code spans; continued ones in one."""
    blocks = [body for language, body in FENCED.findall(text) if language in ("", "bash")]
    blocks += re.findall(r"^    \S.*$", FENCED.sub("", text), re.MULTILINE)
    return [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *spans(text)]


def commands() -> dict[str, list[str]]:
    """Module and arguments of each command of training/, by what the page shows."""
    found = {}
    for text in TEXT.values():
        for line in shell_lines(text):
            match = re.search(r"-m (training\.\w+(?:\.\w+)?)(?: (.*))?$", line)
            if match and not re.search(r"\.\.\.| \| ", line):
                found[match[0]] = [match[1], *shlex.split(match[2] or "", comments=True)]
    return found


COMMANDS = commands()


class Parsed(Exception):
    pass


def test_pages_show_commands():
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("shown", COMMANDS)
def test_commands_accept_the_arguments_shown(shown, monkeypatch):
    name, *words = COMMANDS[shown]
    if not words or (name == "training.carl_code" and len(words) == 1):  # named alone
        words.append("--help")
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, args=None, namespace=None):
        namespace, rest = parse(self, args, namespace)
        if self.prog.count(" ") > 2:  # of a subcommand
            return namespace, rest
        assert not rest, rest
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", stop)
    package = importlib.util.find_spec(name).submodule_search_locations
    main = importlib.import_module(f"{name}.__main__" if package else name).main
    with pytest.raises((Parsed, SystemExit)) as ended:
        main(words)
    if ended.type is SystemExit:
        assert (words[-1], ended.value.code) == ("--help", 0)
    recipe = next((word for word in words if word.endswith(".yaml")), None)
    if recipe and name in ("training.train", "training.memory"):
        load_config(recipe, [word for word in words if "=" in word and "$" not in word])


def keys(schema: type, prefix: str = "") -> set[str]:
    found = set()
    for one in fields(schema):
        found.add(f"{prefix}{one.name}")
        if is_dataclass(one.type):
            found |= keys(one.type, f"{prefix}{one.name}.")
    return found


@pytest.mark.parametrize("page", TEXT)
def test_recipe_keys_exist(page):
    named = set(KEY.findall(" ".join(spans(TEXT[page])))) - {"data.index"}
    assert named - keys(Config) == set()


def test_extras_and_targets_exist():
    text = "\n".join(TEXT.values())
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(",".join(re.findall(r'(?:fastseq|\.)\[([\w,]+)\]"', text)).split(","))
    assert {"train", "video", "backbones"} <= extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    targets = set(re.findall(r"(?:^|`)\s*make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test", "quick"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
