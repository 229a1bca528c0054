"""FineGym: events cut out exactly, elements of two class sets, missing downloads."""

import json

import pytest
import trees

from training.datasets.finegym_elements import later_wins
from training.labels import main

FLOOR, VAULT, EMPTY = (f"A0xizZuzKI0_{name}" for name in (trees.FLOOR, trees.VAULT, trees.EMPTY))


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on the tree: (exit status, labels.json, what was printed)."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    trees.build_finegym(source)

    def command(*options: str):
        status = main(["finegym", str(source), "--out", str(out), "--overwrite", *options])
        path = out / "labels.json"
        return status, json.loads(path.read_text()) if path.exists() else None, capsys.readouterr()

    return command


def test_events_are_cut_frame_exactly(run, tmp_path):
    status, labels, printed = run()
    assert status == 3
    assert labels["class_sets"] == {"gym99": {"all": trees.GYM99}, "gym288": {"all": trees.GYM288}}
    assert labels["videos"].keys() == {f"{FLOOR}.mp4", f"{VAULT}.mp4"}
    # The event begins at 1.02 s; the first frame shown from then on is frame 26 at 1.04 s, and
    # frame k of the clip is at 0.02 + k / 25 s of the event.
    floor = labels["videos"][f"{FLOOR}.mp4"]
    assert floor == {
        "action": "all",
        "split": "train",
        "labels": {
            "gym99": {"segments": [[5, 22, 1], [22, 40, 2]], "split": "train"},
            "gym288": {"segments": [[5, 22, 2], [22, 40, 4], [50, 62, 3]], "split": "train"},
        },
    }
    assert trees.numbers(tmp_path / f"out/{FLOOR}.mp4") == [*range(26, 113)]  # up to 4.48 s
    assert trees.numbers(tmp_path / f"out/{VAULT}.mp4") == [*range(125, 150)]
    assert "missing: no video file of this name below" in printed.out
    assert "(1): Missing0000" in printed.out


def test_what_does_not_fit_is_reported(run):
    _, _, printed = run()
    for line in (
        f"element is listed twice; the last class is used (1): {FLOOR}_A_0001_0002",
        f"has no such element, listed for gym288 (1): {FLOOR}_A_0009_0010",
        f"elements overlap; the later one in the annotation wins, as in CARL's script (1): {FLOOR}",
        f"no element of gym99 or gym288; --keep-unlabelled keeps it (1): {EMPTY}",
        "left out: it lasts from 7.5 to 7.5 s (1): A0xizZuzKI0_E_000007_000007",
        "splits: gym288 test 1, gym288 train 1, gym99 test 1, gym99 train 1",
    ):
        assert line in printed.out


def test_options(run):
    _, labels, _ = run("--by-event", "--stages", "all", "--keep-unlabelled")
    assert labels["class_sets"]["gym99"] == {
        "vault": trees.GYM99[:1],
        "floor exercise": trees.GYM99[1:],
    }
    vault = labels["videos"][f"{VAULT}.mp4"]
    assert (vault["action"], vault["split"]) == ("vault", "test")
    # At 25 frames per second from 5 s on: the first stage begins with the event.
    assert vault["labels"]["gym288"]["segments"] == [[0, 23, 1]]
    floor = labels["videos"][f"{FLOOR}.mp4"]["labels"]
    assert floor["gym99"]["segments"] == [[5, 22, 0], [22, 40, 1]]
    assert floor["gym288"]["segments"] == [[5, 22, 0], [22, 40, 2], [50, 62, 1]]
    assert labels["videos"][f"{EMPTY}.mp4"] == {"action": "all", "split": "train"}


def test_events_that_are_cut_already(run, tmp_path):
    videos = tmp_path / "processed_videos"
    trees.video(videos / f"{VAULT}.mkv", 25)
    status, labels, printed = run("--videos", str(videos))
    assert status == 3
    assert labels["videos"] == {
        f"{VAULT}.mkv": {
            "action": "all",
            "split": "test",
            "unit": "seconds",
            "labels": {
                "gym99": {"segments": [[0.5, 0.9, 0]], "split": "test"},
                "gym288": {"segments": [[0.5, 0.9, 1]], "split": "test"},
            },
        }
    }
    assert f"the event is cut already; its file is used as it is (1): {VAULT}" in printed.out
    assert "(2): A0xizZuzKI0, Missing0000" in printed.out
    status, labels, _ = run("--media", "none", "--out", str(videos))
    assert (status, [*labels["videos"]]) == (3, [f"{VAULT}.mkv"])


def annotated(folder, change):
    """Changes the annotation of the first video."""
    path = folder / "finegym_annotation_info_v1.0.json"
    content = json.loads(path.read_text())
    change(content["A0xizZuzKI0"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_events_past_the_end_of_their_video(run, tmp_path, suffix):
    """A video of 4 s, where the floor exercise is from 1.02 to 4.5 s and its labels end at 3.52."""
    path = tmp_path / "source/FineGym_Raw_database/A0xizZuzKI0.mp4"
    path.unlink()
    trees.video(path.with_suffix(suffix), 100)
    late = f"missing: it begins at 5 s, but its video ends at 4 s (1): {VAULT}"
    cut = f"remark: the event ends after its video and is cut (1): {FLOOR} (4.5 s, the video 4 s)"
    for options in (["--dry-run"], []):
        status, labels, printed = run(*options)
        assert status == 3
        assert late in printed.out
        assert cut in printed.out
        assert "videos: 1\n" in printed.out
    assert labels["videos"].keys() == {f"{FLOOR}.mp4"}
    assert len(trees.numbers(tmp_path / f"out/{FLOOR}.mp4")) == 100 - 26
    path.with_suffix(suffix).unlink()
    trees.video(path.with_suffix(suffix), 80)  # 3.2 s
    status, _, printed = run("--dry-run")
    assert status == 2
    assert f"its labels end at 3.52 s, but its video ends at 3.2 s: {FLOOR}" in printed.err


def test_an_event_that_is_cut_already_and_too_short(run, tmp_path):
    videos = tmp_path / "processed_videos"
    trees.video(videos / f"{VAULT}.mp4", 20)  # 0.8 s; its labels end at 0.9 s
    trees.video(videos / f"{FLOOR}.mp4", 80)  # 3.2 s; its labels end at 2.5 s
    status, labels, printed = run("--videos", str(videos))
    assert (status, [*labels["videos"]]) == (3, [f"{FLOOR}.mp4"])
    assert f"its labels end at 0.9 s, but its video ends at 0.8 s (1): {VAULT}" in printed.out


def test_wrong_times_name_the_event_and_the_element(run, tmp_path):
    def change(video):
        video[trees.FLOOR]["timestamps"] = [[18.2]]
        video[trees.VAULT]["segments"]["A_0000_0001"]["timestamps"] = [[0.9, None]]
        video[trees.EMPTY] = "text"
        video["E_000009_000010"] = {"timestamps": [[9, 10]], "segments": {"A_1_2": {}}}

    annotated(tmp_path / "source", change)
    status, _, printed = run()
    assert status == 2
    video = "\n  A0xizZuzKI0, "
    for line in (
        f"{video}{trees.FLOOR}: timestamps are [[18.2]], expected [[start, stop]]\n",
        f"{video}{trees.VAULT}, A_0000_0001: timestamps are [[0.9, None]], expected [[start, stop]",
        f"{video}{trees.EMPTY}: got 'text', expected {{video: ",
        f"{video}E_000009_000010, A_1_2: timestamps are missing, expected [[start, stop], ...]",
    ):
        assert line in printed.err


def test_an_element_of_both_class_sets_is_named_once(run, tmp_path):
    def change(video):
        video[trees.VAULT]["segments"]["A_0000_0001"]["timestamps"][-1] = [0.5, 1.5]
        video[trees.FLOOR]["segments"]["A_0000_0001"]["timestamps"] = [[7.0, 8.0]]

    annotated(tmp_path / "source", change)
    _, _, printed = run()
    assert f"element ends after its event and is cut (1): {VAULT}_A_0000_0001\n" in printed.out
    assert f"element without a time in its event is left out (1): {FLOOR}_A" in printed.out


def test_later_elements_win():
    assert later_wins([(0, 4, 1), (1, 2, 2)]) == ([[0, 1, 1], [1, 2, 2], [2, 4, 1]], True)
    assert later_wins([(1, 2, 2), (0, 4, 1)]) == ([[0, 4, 1]], True)
    assert later_wins([(2, 3, 1), (0, 2, 2)]) == ([[0, 2, 2], [2, 3, 1]], False)


def test_one_class_set_and_another_version(run, tmp_path):
    source = tmp_path / "source"
    for path in source.glob("gym288*"):
        path.unlink()
    (source / "finegym_annotation_info_v1.1.json").write_text("{}")
    _, labels, _ = run()
    assert [*labels["class_sets"]] == ["gym99"]
    status, _, printed = run("--version", "v1.1")
    assert status == 2
    assert "gym99 is incomplete, no gym99_train_element_v1.1.txt" in printed.err
    status, _, printed = run("--version", "v2")
    assert status == 2
    assert "it has v1.0, v1.1" in printed.err


def test_classes_of_one_name_are_told_apart_by_their_set(run, tmp_path):
    """As in the owner's file, which has "salto backward tucked" as a flight and as a dismount."""
    lines = [
        "Clabel:  58; set: 33; Glabel: 290; (BB) salto backward tucked",
        "Clabel:  43; set: 31; Glabel: 213; (BB) split jump     ",
        "Clabel:  70; set: 35; Glabel: 359; (BB) salto backward tucked",
    ]
    text = "\n".join(line.replace(line[7:11], f"{k:4}") for k, line in enumerate(lines))
    (tmp_path / "source/gym99_categories.txt").write_text(text)
    _, labels, _ = run()
    assert labels["class_sets"]["gym99"]["all"] == [
        "(BB) salto backward tucked (set 33)",
        "(BB) split jump",
        "(BB) salto backward tucked (set 35)",
    ]


def test_wrong_files_name_the_line(run, tmp_path):
    source = tmp_path / "source"
    for name, text, message in (
        ("gym99_categories.txt", "Clabel: 0; set: 1; (VT) x\n", "line 1: 'Clabel: 0; set: 1; (VT)"),
        ("gym99_categories.txt", "Clabel: 1; set: 1; Glabel: 1; x\n", "no Clabel 0"),
        ("gym99_val_element.txt", "\nA_E_1_2_A_3_4 9\n", "line 2: class 9, expected 0 to 2"),
        (
            "gym99_val_element.txt",
            "a b\n",
            "line 1: 'a b'; expected 'A0xAXXysHUo_E_003585_003641_A",
        ),
        ("finegym_annotation_info_v1.0.json", "{", "not a readable JSON file"),
        (
            "finegym_annotation_info_v1.0.json",
            '{"a": {"E_1_2": {}}}',
            "a, E_1_2: timestamps are missing",
        ),
    ):
        path = source / name
        good = path.read_text()
        path.write_text(text)
        status, _, printed = run()
        assert status == 2
        assert str(path) in printed.err
        assert message in printed.err
        path.write_text(good)
    (source / "finegym_annotation_info_v1.0.json").unlink()
    status, _, printed = run()
    assert status == 2
    assert "no finegym_annotation_info_v*.json; it contains FineGym_Raw_database/" in printed.err
