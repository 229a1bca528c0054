"""`evaluate --class-set`: the scored phases, the file of the result, and what names the set."""

import json

import pytest
from test_report import PHASES, folder, run, write_grey_videos  # noqa: F401

from training import evaluate
from training.data.index import build_index
from training.evaluation import encoders
from training.evaluation.videos import open_index
from training.pages.result_section import result_section
from training.pages.sections import configuration
from training.runs.folder import contents, evaluation_file
from training.support.command import LeftOut

FINE = "fine 3/4"


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """Videos with two phases in the class set "coarse", the first, and three in FINE."""
    place = tmp_path_factory.mktemp("two_sets")
    write_grey_videos(place, per_split=2)
    content = json.loads((place / "labels.json").read_text())
    for entry in content["videos"].values():
        cuts = entry.pop("boundaries")
        entry["labels"] = {"coarse": {"boundaries": cuts[:1]}, FINE: {"boundaries": cuts}}
    names = {"coarse": PHASES[:2], FINE: PHASES}
    content["class_sets"] = {name: {"up": of, "down": of} for name, of in names.items()}
    del content["classes"]
    (place / "labels.json").write_text(json.dumps(content))
    build_index(place, progress=False)
    return place


def evaluated(run, place, capsys, *options, file="evaluation.json"):  # noqa: F811
    assert evaluate.main([str(run), "--folder", str(place), *options]) == 0
    printed = capsys.readouterr().out
    assert f"written to {run / file}, " in printed
    return json.loads((run / file).read_text()), printed


def test_each_class_set_has_its_own_result(run, two_sets, capsys):  # noqa: F811
    result, printed = evaluated(run, two_sets, capsys)
    assert (result["class_set"], result["run_class_set"]) == ("coarse", "coarse")
    assert "; class set coarse; " in printed
    first = (run / "evaluation.json").read_text()
    name = "evaluation_fine 3%2F4.json"
    other, printed = evaluated(run, two_sets, capsys, "--class-set", FINE, file=name)
    assert (other["class_set"], other["run_class_set"]) == (FINE, "coarse")
    assert f"; class set {FINE}; " in printed
    assert (run / "evaluation.json").read_text() == first
    scores = [one["rows"]["trained"]["metrics"]["progression"] for one in (result, other)]
    assert scores[0] != scores[1]  # other phases
    evaluated(run, two_sets, capsys, "--class-set", "coarse")  # the run's
    name = "evaluation_val_fine 3%2F4.json"
    assert evaluation_file("val", FINE) == name
    assert ", stride 5, class set coarse. Bold" in "".join(result_section(result))
    _, cfg = encoders.load_encoder(run)
    facts = configuration(run, cfg, open_index(cfg, two_sets), [], LeftOut())
    assert f"<td>coarse; labels.json also has {FINE}</td>" in "".join(facts)


@pytest.mark.parametrize(
    ("options", "class_set"), [(["vclr"], FINE), (["vclr"], "coarse"), (["lav"], FINE)]
)
def test_every_protocol_names_the_class_set(run, two_sets, capsys, options, class_set):  # noqa: F811
    file = evaluation_file(None, FINE) if class_set == FINE else "evaluation.json"
    words = ["--protocol", *options, "--class-set", class_set]
    result, printed = evaluated(run, two_sets, capsys, *words, file=file)
    assert result["class_set"] == class_set
    assert f"class set {class_set}; " in printed


def test_a_file_with_classes_has_no_class_set(run, folder, capsys):  # noqa: F811
    result, printed = evaluated(run, folder, capsys)
    assert result["class_set"] == ""
    assert "class set" not in printed
    assert evaluate.main([str(run), "--class-set", "gym99"]) == 2
    assert "have no class set 'gym99'" in capsys.readouterr().err


def test_no_two_results_share_a_file():
    choices = [
        (split, name)
        for split in (None, "val", "train")
        for name in (None, "x", "val", "val_x", "train_val", "a/b", "a%2Fb", "..")
    ]
    assert len({evaluation_file(*one) for one in choices}) == len(choices)
    assert not any("/" in evaluation_file(*one) for one in choices)


def test_overwrite_knows_the_results_and_leaves_copies(tmp_path):
    result = json.dumps({"class_set": "gym288"})
    for name in ("evaluation_gym288.json", "evaluation_val_gym288.json", "evaluation_old.json"):
        (tmp_path / name).write_text(result)
    (tmp_path / "evaluation_mine.json").write_text("[]")
    (tmp_path / "evaluation.json").write_text("{}")
    assert [path.name for path in contents(tmp_path)] == [
        "evaluation.json",
        "evaluation_gym288.json",
        "evaluation_val_gym288.json",
    ]
