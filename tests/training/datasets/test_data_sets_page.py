"""The first commands of docs/data_sets.md run as they stand."""

import re
import shlex
from pathlib import Path

import trees

from training.labels import main as labels
from training.prepare import main as prepare
from training.train import main as train

PAGE = Path(__file__).parents[3] / "docs/data_sets.md"


def test_the_first_commands_run_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trees.build_penn_action(tmp_path / "Penn_Action")
    block = re.search(r"```bash\n(.+?)```", PAGE.read_text(), re.DOTALL)[1]
    commands = {"training.labels": labels, "training.prepare": prepare, "training.train": train}
    used = []
    for line in block.splitlines():
        _, _, module, *arguments = shlex.split(line)
        used.append(module)
        # The plan of a training run stops at all errors in the recipe.
        more = ["--dry-run"] if module == "training.train" else []
        assert commands[module]([*arguments, *more]) == 0, (line, capsys.readouterr().err)
    assert used == ["training.labels", "training.labels", "training.prepare", "training.train"]
