"""The commands of docs/reproduce.md: each row of the papers' tables has one that can be run."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from training import labels, per_action, sweep, train
from training.data.index import build_index
from training.recipe.load import load_config
from training.studies.sweep import Sweep, parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
TABLES = TEXT[TEXT.index("## Tables of the papers") : TEXT.index("## VCLR")]

# Folders of the page, and the reader that makes each of them.
READERS = {
    "penn": "penn_action",
    "pouring": "pouring",
    "gym": "finegym",
    "kallax": "ikea_asm",
    "ae2": "ae2",
    "k400": "kinetics",
}
# Values with which a dry run takes a second. Keys of the same name on the page are left out.
SMALL = {
    "model.backbone": "small_cnn",
    "model.weights": "null",
    "model.weights_parts": "backbone",
    "model.train_from": "all",
    "augmentation.size": "16",
    "data.batch_size": "2",
    "data.num_frames": "4",
    "data.workers": "0",
    "train.chunk_frames": "0",
    "model.conv3d_size": "8",
    "model.fc_size": "8",
    "model.hidden_size": "16",
    "model.heads": "2",
    "model.ff_size": "16",
    "model.embedding_size": "16",
}


def commands() -> list[tuple[str, list[str]]]:
    """(module, words) of every command of the tables, with the page's variables put in."""
    found, variables = [], {}
    for body in re.findall(r"^```bash\n(.*?)^```", TABLES, re.DOTALL | re.MULTILINE):
        for line in body.splitlines():
            if match := re.fullmatch(r'([A-Z0-9_]+)="(.*)"', line):
                variables[match[1]] = match[2]
            elif line.startswith("python -m training."):
                text = re.sub(r"\$([A-Z0-9_]+)", lambda one: variables[one[1]], line)
                _, _, module, *words = shlex.split(text)
                found.append((module, words))
            else:
                assert line.startswith("#"), line
    return found


COMMANDS = commands()
TRAININGS = [
    pytest.param(module, words, id=f"{module}-{words[words.index('--out') + 1]}")
    for module, words in COMMANDS
    if module in ("training.sweep", "training.per_action")
]


def test_every_row_has_its_figures_and_its_own_folder():
    rows = re.findall(r"^# (.+)\npython -m training\.(?:sweep|per_action) ", TABLES, re.MULTILINE)
    assert len(rows) >= 50
    outs = [one.values[1][one.values[1].index("--out") + 1] for one in TRAININGS]
    assert len(outs) == len(set(outs))


@pytest.mark.parametrize(("module", "words"), TRAININGS)
def test_every_combination_is_a_recipe(module, words):
    recipe, *values = [word for word in words if "=" in word or word.endswith(".yaml")]
    fixed, swept = parse(values)
    study = Sweep(recipe, fixed, swept, 1, Path("out"))
    for point in study.points():
        load_config(recipe, study.values(point, 0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small folder of each kind, made from a tree of the owner's layout."""
    sys.path.insert(0, str(Path(__file__).parent / "datasets"))
    builders = importlib.import_module("trees").BUILDERS
    builders |= importlib.import_module("more_trees").BUILDERS
    root = tmp_path_factory.mktemp("reproduce")
    for folder, reader in READERS.items():
        build, source = builders[reader]
        tree = root / "sources" / reader
        tree.mkdir(parents=True)
        build(tree)
        assert labels.main([reader, str(tree / source), "--out", str(root / folder)]) in (0, 3)
        add_copies(root / folder)
        build_index(root / folder)
    return root


def add_copies(folder: Path) -> None:
    """A second video like each one: the trees have actions with a single training video."""
    file = folder / "labels.json"
    content = json.loads(file.read_text())
    for name, entry in list(content["videos"].items()):
        place = Path(name)
        copy = str(place.with_name(f"copy_{place.name}"))
        source = folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / copy)
        content["videos"][copy] = entry
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("module", "words"), TRAININGS)
def test_dry_run(module, words, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    used = {**SMALL}
    if any("model.encoder=fve" in word for word in words) or "carl.yaml" in words[0]:
        used["model.positions"] = "none"
    kept = [word for word in words if word.partition("=")[0] not in used]
    kept = [actions(word, folders) for word in kept]
    small = [f"{key}={value}" for key, value in used.items()]
    command = sweep if module == "training.sweep" else per_action
    status = command.main([*kept, *small, "--dry-run"])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert " runs" in out
    assert "steps in total" in out


def actions(word: str, folders: Path) -> str:
    """The small folders lack some actions: another one stands for them."""
    if not word.startswith("data.action="):
        return word
    folder = "ae2" if word.endswith(("eggs", "milk", "liquid", "forehand")) else "penn"
    content = json.loads((folders / folder / "labels.json").read_text())
    known = sorted({video["action"] for video in content["videos"].values()})
    return word if word.partition("=")[2] in known else f"data.action={known[0]}"


def test_runs_that_are_scored_are_trained_on_the_page():
    """RUN of evaluate and side_by_side is the result of a command above it."""
    made = set()
    for module, words in COMMANDS:
        if module == "training.train":
            made |= {word.partition("=")[2] for word in words if word.startswith("train.run_dir=")}
        if "--out" in words and module in ("training.sweep", "training.per_action"):
            made.add(words[words.index("--out") + 1])
        runs = words[:2] if module == "training.side_by_side" else words[:1]
        if module in ("training.evaluate", "training.side_by_side"):
            for run in runs:
                assert any(run == one or run.startswith(f"{one}/") for one in made), run


def test_kinetics_is_trained_as_the_page_says(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    ((_, words),) = [one for one in COMMANDS if one[0] == "training.train"]
    load_config(words[0], words[1:])
    kept = [word for word in words if word.partition("=")[0] not in SMALL]
    assert train.main([*kept, *(f"{k}={v}" for k, v in SMALL.items()), "--dry-run"]) == 0
    assert "steps in total" in capsys.readouterr().out
