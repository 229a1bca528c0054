"""The command that transfers events to other videos, and its contact sheets."""

import json
import shutil

import numpy as np
import pytest
from pairs import PHASES, grey_run, grey_video, warped
from PIL import Image

from training import propagate
from training.data.index import build_index, load_index
from training.data.labels import read_labels
from training.evaluation import sheets

CLIPS = {"a": (40, 2.0), "b": (30, 0.7), "c": (50, 1.3), "d": (35, 1.0)}
NAMES = ["still", "up", "down"]


def boundaries(name: str) -> list[int]:
    return [int(np.argmax(warped(*CLIPS[name]) >= phase)) for phase in range(1, PHASES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, how in CLIPS.items():
        grey_video(folder / f"{name}.mp4", warped(*how))
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """Four clips, the first with labels, and a run whose network knows the phases."""
    monkeypatch.chdir(tmp_path)
    grey_run(monkeypatch)
    shutil.copytree(made, "clips")
    label({"a.mp4": {"action": "swing", "boundaries": boundaries("a")}, "d.mp4": {"split": "test"}})
    return tmp_path / "clips"


def label(videos: dict, classes: dict | None = None) -> None:
    content = {"classes": {"swing": NAMES} if classes is None else classes, "videos": videos}
    with open("clips/labels.json", "w") as file:
        json.dump(content, file)
    build_index("clips")


def run(*words: str) -> int:
    return propagate.main(["clips", "--run", "run", *words])


def test_events_are_carried_over_and_shown(folder, capsys):
    before = (folder / "labels.json").read_bytes()
    assert run("--from", "a.mp4") == 0
    assert (folder / "labels.json").read_bytes() == before
    written = read_labels(folder / "labels.propagated.json").content
    remark = "carried over from a.mp4: to be checked"
    for name in "bcd":
        entry = written["videos"][f"{name}.mp4"]
        assert (entry["action"], entry["remark"]) == ("swing", remark)
        np.testing.assert_allclose(entry["boundaries"], boundaries(name), atol=1)
    assert written["videos"]["d.mp4"]["split"] == "test"
    assert written["videos"]["a.mp4"] == json.loads(before)["videos"]["a.mp4"]
    out = capsys.readouterr().out
    assert "swing: carried over from a.mp4" in out
    assert "error against" not in out  # no other clip is labelled
    shutil.copy(folder / "labels.propagated.json", folder / "labels.json")
    assert len(build_index(folder).videos) == 4
    assert Image.open("sheet.png").size[0] > 600


def test_labelled_clips_stay_and_show_how_good_it_is(folder, capsys):
    wrong = [place + 4 for place in boundaries("b")]
    label(
        {
            f"{name}.mp4": {"action": "swing", "boundaries": b}
            for name, b in (("a", boundaries("a")), ("b", wrong), ("c", [0, boundaries("c")[1]]))
        }
    )
    assert run("--from", "a.mp4", "--out", "new.json", "--sheet", "pages/new.png") == 0
    videos = read_labels(folder.parent / "new.json").content["videos"]
    assert videos["b.mp4"] == {"action": "swing", "boundaries": wrong}
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("error against the labels of 2 other clips, which are not changed:")
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 2 : start + 5]}
    assert [rows[name][0] for name in ("up", "down", "all")] == ["1", "2", "3"]  # c begins in "up"
    assert float(rows["up"][1]) == pytest.approx(4, abs=1)
    assert float(rows["up"][3]) == pytest.approx(4 / 25, abs=0.041)


def test_nothing_is_written_where_all_clips_are_labelled(folder, capsys):
    label({f"{n}.mp4": {"action": "swing", "boundaries": boundaries(n)} for n in CLIPS})
    assert run("--from", "a.mp4", "--from", str(folder / "b.mp4"), "--open") == 0
    out = capsys.readouterr().out
    assert "carried over from a.mp4, b.mp4" in out
    assert "nothing was written" in out
    assert [path.name for path in folder.iterdir() if path.suffix == ".json"] == ["labels.json"]


def test_events_of_the_class_set_of_the_run_or_of_the_overrides(folder, capsys):
    sets = {"fine": {"swing": NAMES}, "coarse": {"swing": ["up", "over"]}}
    marked = {"fine": {"boundaries": boundaries("a")}, "coarse": {"boundaries": [5]}}
    content = {"class_sets": sets, "videos": {"a.mp4": {"action": "swing", "labels": marked}}}
    (folder / "labels.json").write_text(json.dumps(content))
    build_index(folder)

    def sets_of_b(*words: str) -> list[str]:
        assert propagate.main(["clips", "--from", "a.mp4", "--overwrite", *words]) == 0
        written = read_labels(folder / "labels.propagated.json").content
        return [*written["videos"]["b.mp4"]["labels"]]

    assert sets_of_b("--run", "run") == ["fine"]
    (folder.parent / "run").mkdir()
    (folder.parent / "run/config.yaml").write_text("{data: {class_set: coarse}, train: {steps: 1}}")
    assert sets_of_b("--run", "run") == ["coarse"]
    capsys.readouterr()
    assert propagate.main(["clips", "--sheet-only", "a.mp4", "data.class_set=coarse"]) == 0
    assert '"labels": {"coarse"' in capsys.readouterr().out
    assert propagate.main(["clips", "--sheet-only", "a.mp4", "data.class_set=none"]) == 2
    assert "no class set 'none'; known: fine, coarse" in capsys.readouterr().err


def test_clips_whose_phases_step_back_are_not_compared(folder, capsys):
    back = {"action": "swing", "phases": [0] * 10 + [1] * 10 + [0] * 10}
    label({"a.mp4": {"action": "swing", "boundaries": boundaries("a")}, "b.mp4": back})
    assert run("--from", "a.mp4") == 0
    assert "not compared, because their phases go backwards: 1 clips" in capsys.readouterr().out
    assert read_labels(folder / "labels.propagated.json").content["videos"]["b.mp4"] == back


def test_no_labels_are_replaced(folder, capsys):
    for out, hint in (("clips/labels.json", "copy it yourself"), ("mine.json", "--overwrite")):
        if out == "mine.json":
            (folder.parent / out).write_text("corrected")
        before = (folder.parent / out).read_bytes()
        assert run("--from", "a.mp4", "--out", out) == 2
        assert hint in capsys.readouterr().err
        assert (folder.parent / out).read_bytes() == before
    assert run("--from", "a.mp4", "--out", "clips/labels.json", "--overwrite") == 2
    assert run("--from", "a.mp4", "--out", "mine.json", "--overwrite") == 0
    assert "boundaries" in (folder.parent / "mine.json").read_text()


def test_clips_of_no_known_action_are_left_alone(folder, capsys):
    entries = {
        "a.mp4": {"action": "swing", "boundaries": boundaries("a")},
        "b.mp4": {"action": "pour"},
        "c.mp4": {"action": "swing"},
    }
    label(entries)
    assert run("--from", "a.mp4") == 0
    videos = read_labels(folder / "labels.propagated.json").content["videos"]
    assert [name for name, entry in videos.items() if "boundaries" in entry] == ["a.mp4", "c.mp4"]
    assert "1 clips without an action" in capsys.readouterr().out
    assert run("--from", "a.mp4", "--action", "swing", "--overwrite") == 0
    videos = read_labels(folder / "labels.propagated.json").content["videos"]
    assert videos["d.mp4"]["action"] == "swing"
    assert videos["b.mp4"] == {"action": "pour"}


def test_a_clip_that_cannot_be_read_is_named(folder, capsys):
    whole = (folder / "c.mp4").read_bytes()
    stamp = (folder / "c.mp4").stat()
    (folder / "c.mp4").write_bytes(whole[:200] + bytes(len(whole) - 200))
    import os

    os.utime(folder / "c.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert run("--from", "a.mp4") == 3
    assert "c.mp4" in capsys.readouterr().out
    videos = read_labels(folder / "labels.propagated.json").content["videos"]
    assert "c.mp4" not in videos
    assert run("--from", "c.mp4", "--overwrite") == 2  # it has no labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "e.mp4"], "e.mp4 is not among the 4 videos"),
        (["--from", "b.mp4"], "b.mp4 has no events to carry over; write the first frame"),
        (["--from", "a.mp4", "--action", "pour"], "--action is pour, but a.mp4 shows swing"),
        (["--from", "a.mp4", "--labels", "none.json"], "none.json"),
    ],
)
def test_wrong_requests(folder, capsys, words, message):
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "labels.propagated.json").exists()


def test_marks_must_hold_an_event_of_one_action(folder, capsys):
    label({"a.mp4": {"action": "swing", "boundaries": [0, 40]}})
    assert run("--from", "a.mp4") == 2
    assert "no phase of swing begins after its first labelled frame" in capsys.readouterr().err
    classes = {"swing": NAMES, "pour": NAMES}
    label(
        {
            "a.mp4": {"action": "swing", "boundaries": [9, 20]},
            "b.mp4": {"action": "pour", "boundaries": [9, 20]},
        },
        classes,
    )
    assert run("--from", "a.mp4", "--from", "b.mp4") == 2
    assert "the clips of --from show pour, swing" in capsys.readouterr().err
    label(
        {
            "a.mp4": {"action": "swing", "boundaries": [9, 20]},
            "b.mp4": {"action": "pour"},
            "c.mp4": {"action": "pour"},
            "d.mp4": {"action": "pour"},
        },
        classes,
    )
    assert run("--from", "a.mp4") == 2
    assert "no other clip of the action 'swing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["clips"],
        ["clips", "--from", "a.mp4", "--sheet-only", "a.mp4"],
        ["clips", "--from", "a.mp4", "--every", "2"],
        ["clips", "--sheet-only", "a.mp4", "--every", "0"],
        ["clips", "--from", "a.mp4", "--sheet", "sheet.jpg"],
        ["clips", "--from", "a.mp4", "--run", "run", "model.pool=grid"],
    ],
)
def test_wrong_usage(words):
    with pytest.raises(SystemExit) as stopped:
        propagate.main(words)
    assert stopped.value.code == 2


def test_sheet_of_one_clip(folder, capsys):
    assert propagate.main(["clips", "--sheet-only", "b.mp4", "--every", "3"]) == 0
    out = capsys.readouterr().out
    assert "written: sheet.png" in out
    assert '"boundaries": [<first frame of up>, <first frame of down>]}}}' in out
    assert "`python -m training.view " in out
    row = sheets.frame_row(load_index("clips").videos[1], 3)
    assert [block.tiles[0].lines[0] for block in row.blocks] == [str(n) for n in range(0, 30, 3)]
    levels = [block.tiles[0].frame.mean() for block in row.blocks]
    np.testing.assert_allclose(levels, 40 + warped(*CLIPS["b"])[::3] * 60, atol=4)
    # The picture of frame 15 is in the sheet, sixth in its row.
    frame = row.blocks[5].tiles[0].frame
    sheet = np.asarray(Image.open("sheet.png"))
    width = frame.shape[1] + 2 * 3 + 2 + 16
    pixel = sheet[100, 16 + 5 * width + 20].astype(int)
    np.testing.assert_allclose(pixel, frame[60, 17], atol=4)


def test_pages(folder, monkeypatch):
    """The border of a tile shows its event; a long sheet continues on further pages."""
    record = load_index("clips").videos[0]
    row = sheets.event_row(record, [("up", 0), ("down", 40)], note="", colour="#d35400")
    first, last = row.blocks
    assert [tile.lines for tile in first.tiles] == [["0"], ["2"], ["4"]]  # nothing before 0
    assert [tile.border for tile in first.tiles] == ["#d35400", sheets.NEUTRAL, sheets.NEUTRAL]
    assert (list(last.tiles), last.title) == ([], "down: not in the clip")
    middle = sheets.event_row(record, [("up", 20)], note="", colour="#d35400").blocks[0]
    assert [tile.lines[0] for tile in middle.tiles] == ["16", "18", "20", "22", "24"]
    assert [tile.border == "#d35400" for tile in middle.tiles] == [False, False, True, False, False]
    levels = [tile.frame.mean() for tile in middle.tiles]
    np.testing.assert_allclose(levels, 40 + warped(*CLIPS["a"])[[16, 18, 20, 22, 24]] * 60, atol=4)
    monkeypatch.setattr(sheets, "PAGE", (300, 450))
    made = folder.parent
    assert sheets.write_sheet([middle_row(record)] * 3, made / "s.png") == [
        made / "s_1.png",
        made / "s_2.png",
        made / "s_3.png",
    ]
    assert sheets.write_sheet([sheets.frame_row(record, 20)], made / "s.png") == [made / "s.png"]


def middle_row(record):
    return sheets.event_row(record, [("up", 20)], note="carried over", colour="#d35400")
