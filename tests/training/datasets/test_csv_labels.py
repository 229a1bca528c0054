"""Tables of videos: to labels.json and back, and what spreadsheets write."""

import json

import pytest
import trees

from training.labels import main
from training.prepare import main as prepare


@pytest.fixture
def run(tmp_path, capsys):
    """Writes a table and runs the command: (exit status, labels.json, what was printed)."""

    def command(table: str, *options: str, encoding: str = "utf-8"):
        (tmp_path / "table.csv").write_text(table, encoding=encoding, newline="")
        out = tmp_path / "out"
        arguments = ["csv", str(tmp_path / "table.csv"), "--out", str(out), "--overwrite"]
        status = main([*arguments, *options])
        path = out / "labels.json"
        return status, json.loads(path.read_text()) if path.exists() else None, capsys.readouterr()

    for name in ("a/1.mp4", "b/2.mp4", "c.mp4"):
        trees.video(tmp_path / name, 30)
    return command


POUR = {"pour": ["reach", "pour it", "put down"]}
ONE = {
    "action": "pour",
    "split": "train",
    "view": "ego",
    "segments": [[0, 8, 0], [8, 20, 1], [22, 30, 2]],
}


def test_a_table_becomes_labels(run):
    status, labels, printed = run(trees.TABLE)
    assert status == 3
    assert labels == {
        "classes": POUR,
        "videos": {
            "a/1.mp4": ONE,
            "b/2.mp4": {"action": "pour", "split": "test", "view": "exo", "boundaries": [5]},
            "c.mp4": {"action": "wave", "split": "val"},
        },
    }
    assert "missing: no such file in" in printed.out
    assert "(1): gone.mp4" in printed.out


def test_what_spreadsheets_write(run):
    """Semicolons, decimal commas, a byte order mark, Windows' lines and paths, "sep=;"."""
    table = "Path;Start;End;PHASE\r\na\\1.mp4;0,2;0,5;reach\r\n;;;\r\n"
    expected = {"action": "all", "unit": "seconds", "segments": [[0.2, 0.5, 0]]}
    for text, encoding in (
        (table, "utf-8-sig"),
        (f"sep=;\r\n{table}", "utf-8"),
        (table.replace(";", "\t"), "utf-16"),
        (table.replace("0,2", '"0,2"').replace("0,5", '"0,5"').replace(";", ","), "utf-8"),
    ):
        status, labels, _ = run(text, "--unit", "seconds", encoding=encoding)
        assert status == 0
        assert labels["videos"] == {"a/1.mp4": expected}


def test_open_ends_need_the_length_unless_phases_follow_each_other(run):
    table = "path,start,end,phase\n"
    _, labels, _ = run(table + "c.mp4,0,4,x\nc.mp4,4,,y\n")
    assert labels["videos"]["c.mp4"]["boundaries"] == [4]
    _, labels, _ = run(table + "c.mp4,9,20,z\nc.mp4,0,,x\nc.mp4,4,,y\n")
    assert labels["videos"]["c.mp4"]["segments"] == [[0, 4, 0], [4, 9, 1], [9, 20, 2]]
    _, labels, _ = run(table + "c.mp4,0,4,x\nc.mp4,6,,y\n")
    assert labels["videos"]["c.mp4"]["segments"] == [[0, 4, 0], [6, 30, 1]]
    _, labels, _ = run(table + "c.mp4,5,,x\n")
    assert labels["videos"]["c.mp4"]["segments"] == [[5, 30, 0]]
    _, labels, _ = run(table + "c.mp4,0,4,x\nc.mp4,4,6,y\nc.mp4,6,,x\n")
    assert labels["videos"]["c.mp4"]["segments"] == [[0, 4, 0], [4, 6, 1], [6, 30, 0]]
    _, labels, _ = run(table + "c.mp4,0.5,,x\n", "--unit", "seconds")
    assert labels["videos"]["c.mp4"]["segments"] == [[0.5, pytest.approx(1.2), 0]]


def test_phases_by_number_and_by_an_earlier_file(run, tmp_path):
    table = "path,start,end,phase\nc.mp4,0,4,2\nc.mp4,4,9,0\n"
    _, labels, _ = run(table)
    assert labels["classes"] == {"all": ["0", "1", "2"]}
    assert labels["videos"]["c.mp4"]["segments"] == [[0, 4, 2], [4, 9, 0]]
    _, labels, _ = run(f"path,start,end,phase\nc.mp4,0,4,{1 << 40}\nc.mp4,4,9,0\n")
    assert labels["classes"] == {"all": [str(1 << 40), "0"]}
    (tmp_path / "old.json").write_text('{"classes": {"all": ["a", "b", "c"]}}')
    table = "path,start,end,phase\nc.mp4,0,4,c\n"
    _, labels, _ = run(table, "--classes", str(tmp_path / "old.json"))
    assert labels["classes"] == {"all": ["a", "b", "c"]}
    assert labels["videos"]["c.mp4"]["segments"] == [[0, 4, 2]]
    status, _, printed = run(table.replace("c\n", "d\n"), "--classes", str(tmp_path / "old.json"))
    assert status == 2
    assert "line 2: " in printed.err
    assert "has no phase 'd' of 'all'" in printed.err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "the file is empty; expected a header: path"),
        ("path\n", "no rows below the header"),
        ("file,split\na,train\n", "no column 'path'; unknown column 'file'"),
        ("path,path\n", "column 'path' is there twice"),
        ("path,split\na/1.mp4,training,x\n", "line 2: 3 cells, but the header has 2"),
        ("path,split\na/1.mp4,foo\n", "line 2: split is 'foo', expected train, val or test"),
        ("path,split\n,train\n", "line 2: path is empty"),
        ("path\n../x.mp4\n", "line 2: ../x.mp4 is not below"),
        ("path,end\na/1.mp4,4\n", "line 2: start or end without a phase"),
        ("path,start,phase\na/1.mp4,x,p\n", "line 2: start is 'x', expected a number of frames"),
        ("path,start,phase\na/1.mp4,1.5,p\n", "expected a whole frame number (or --unit seconds)"),
        ("path,start,phase\na/1.mp4,-1,p\n", "line 2: start is -1, expected a number from 0"),
        ("path,start,end,phase\na/1.mp4,5,5,p\n", "line 2: end 5 does not lie after start 5"),
        (
            "path,start,end,phase\na/1.mp4,4,8,p\nc.mp4,0,9,p\na/1.mp4,0,5,q\n",
            "lines 4 and 2: the phases 'q' and 'p' overlap",
        ),
        (
            "path,split\na/1.mp4,train\na/1.mp4,test\n",
            "line 3: split is 'test', but 'train' in line 2 of this video",
        ),
        ("path,unit,start,phase\na/1.mp4,ms,0,p\n", "unit is 'ms', expected frames or seconds"),
    ],
)
def test_wrong_tables_name_the_line(run, tmp_path, table, message):
    status, labels, printed = run(table)
    assert (status, labels) == (2, None)
    assert printed.err.startswith(f"error: {tmp_path / 'table.csv'}:")
    assert message in printed.err


def test_there_and_back(run, tmp_path, capsys):
    run(trees.TABLE)
    out, table = tmp_path / "out", tmp_path / "back.csv"
    assert main(["csv", str(out), "--export", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "3 videos, 6 rows" in printed
    assert "not in the table" not in printed
    assert main(["csv", str(out), "--export", str(table)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    lines = trees.TABLE.splitlines()[:-1]  # without the video that is not there
    filled = [lines[0], lines[1], "a/1.mp4,train,pour,ego,8,20,pour it"]
    filled += ["a/1.mp4,train,pour,ego,22,30,put down", "b/2.mp4,test,pour,exo,0,5,reach"]
    filled += ["b/2.mp4,test,pour,exo,5,,pour it", "c.mp4,val,wave,,,,"]
    assert table.read_text().splitlines() == filled
    first = (out / "labels.json").read_text()
    assert run(table.read_text())[0] == 0
    assert (out / "labels.json").read_text() == first


def test_seconds_stay_seconds_there_and_back(run, tmp_path, capsys):
    rows = "path,start,end,phase\nc.mp4,0.2,0.5,x\na/1.mp4,0.5,0.8,x\n"
    _, first, printed = run(rows, "--unit", "seconds")
    assert "  unit of the labels: seconds 2\n" in printed.out
    table = tmp_path / "back.csv"
    assert main(["csv", str(tmp_path / "out"), "--export", str(table)]) == 0
    capsys.readouterr()
    status, again, _ = run(table.read_text())
    assert status == 0
    assert again == first
    _, _, printed = run(trees.TABLE)
    assert "  unit of the labels: frames 2\n" in printed.out


def test_rows_past_the_end_of_a_video_name_their_line(run, tmp_path):
    """The videos have 30 frames in 1.2 s."""
    trees.write_pictures(tmp_path / "p", 9)
    table = "path,unit,start,end,phase\n"
    for row, message in (
        ("c.mp4,seconds,0.1,999,x", "line 2: end 999 s lies past the end of c.mp4, which has 30"),
        ("c.mp4,seconds,1.3,,x", "line 2: start 1.3 s lies past the end of c.mp4"),
        ("c.mp4,frames,0,31,x", "line 2: end 31 lies past the end of c.mp4"),
        ("p,frames,0,10,x", "line 2: end 10 lies past the end of p, which has 9 frames"),
        ("c.mp4,seconds,0.1,1.23,x", None),  # less than a frame past the end
        ("c.mp4,frames,0,30,x", None),
        ("p,frames,0,9,x", None),
    ):
        for options in (["--dry-run"], []):
            status, _, printed = run(f"{table}{row}\n", *options)
            assert status == (2 if message else 0), row
            assert message is None or f"{tmp_path / 'table.csv'}:\n  {message}" in printed.err
        if message is None:
            assert prepare([str(tmp_path / "out")]) == 0, row
    status, _, printed = run("path\np\n", "--fps", "0")
    assert status == 2
    assert "error: --fps is 0, expected a positive number" in printed.err


def test_missing_files_have_their_line_and_a_hint(run, tmp_path):
    status, _, printed = run("path,split\nC.MP4,train\na/1.mp4,train\nd.mp4,test\n")
    assert status == 3
    assert (
        f"missing: no such file in {tmp_path} (2): C.MP4 (line 2; c.mp4 is there), d.mp4 (line 4)"
    ) in printed.out
    status, _, printed = run("path,split\nC.MP4,train\nd.mp4,test\n")
    assert status == 2
    assert (
        f"none of the 2 annotated videos is there; no such file in {tmp_path}: "
        "C.MP4 (line 2; c.mp4 is there), d.mp4 (line 3)"
    ) in printed.err
    status, _, printed = run("path,split\nd.mp4,train\na/1.mp4,tset\n")
    assert status == 2
    assert "line 3: split is 'tset'" in printed.err
    assert f"\n  no such file in {tmp_path}: d.mp4 (line 2)" in printed.err


def test_a_dry_run_needs_no_folder(run, tmp_path, capsys):
    run("path\nc.mp4\n")
    table = str(tmp_path / "table.csv")
    assert main(["csv", table, "--dry-run"]) == 0
    assert "videos: 1\n" in capsys.readouterr().out
    for options in ([], ["--dry-run", "--media", "none"]):
        assert main(["csv", table, *options]) == 2
        assert "--out FOLDER is needed" in capsys.readouterr().err


def test_what_a_table_cannot_have_is_named(tmp_path, capsys):
    labels = {
        "class_sets": {"few": {"all": ["x", "y", "z", "z", "u"]}, "many": {"all": ["x"]}},
        "source": "mine",
        "videos": {
            "a.mp4": {
                "trim": [0, 9],
                "labels": {"few": {"phases": [0, 0, -1, 2], "split": "test"}, "many": {}},
            },
            "b.mp4": {"unit": "seconds", "labels": {"few": {"segments": [[0.5, 2.25, "z"]]}}},
            "c.mp4": {"unlabelled_from": 6, "labels": {"few": {"boundaries": [0, 4]}}},
        },
    }
    del labels["videos"]["a.mp4"]["labels"]["many"]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    table = tmp_path / "table.csv"
    assert main(["csv", str(tmp_path / "labels.json"), "--export", str(table)]) == 0
    assert table.read_text().splitlines() == [
        "path,split,action,view,start,end,phase,unit",
        "a.mp4,test,,,0,2,x,frames",
        "a.mp4,test,,,3,4,z,frames",
        "b.mp4,,,,0.5,2.25,z,seconds",
        "c.mp4,,,,0,4,y,frames",
        "c.mp4,,,,4,6,z,frames",
    ]
    printed = capsys.readouterr().out
    for line in (
        "not in the table: class set many",
        "not in the table: key source of the file",
        "not in the table: trim: a.mp4",
        "not in the table: which of the phases of one name of all: z",
        "not in the table: phases of all that no video shows: u",
    ):
        assert line in printed
    (tmp_path / "labels.json").write_text("[]")
    assert main(["csv", str(tmp_path / "labels.json"), "--export", str(table)]) == 2
