"""The page of `view`: labels in seconds, segments, class sets, the split val."""

import json

import pytest

pytest.importorskip("av")
pytest.importorskip("PIL", reason='needs Pillow: pip install "fastseq[train]"')
from test_view_page import FRAMES, User, address, folder, server  # noqa: F401

from training.data.labels import read_labels

pytestmark = [pytest.mark.browser, pytest.mark.process]
CLASSES = {"jump": ["stand", "fly", "land"]}


def write(folder, videos, **top):  # noqa: F811
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES, "videos": videos, **top}))


def words(user):
    return user.page.get_attribute("#timeline", "aria-label").removeprefix(
        "Phases over the video: "
    )


def test_seconds_are_edited_in_frames(browser_page, address, folder):  # noqa: F811
    """25 frames in a second; b has segments, and c times that do not fit."""
    write(
        folder,
        {
            "a.mp4": {"action": "jump", "unit": "seconds", "boundaries": [0.4, 0.8]},
            "b.mp4": {"action": "jump", "segments": [[0, 10, "stand"], [10, 30, "land"]]},
            "c.mp4": {"action": "jump", "unit": "seconds", "trim": [0.01, 0.02]},
        },
    )
    user = User(browser_page(), address)
    assert words(user) == "0 stand: frames 0 to 9; 1 fly: frames 10 to 19; 2 land: frames 20 to 39"
    assert not user.page.is_enabled("#trim-clear")
    user.press("ArrowRight", "ArrowRight", "1")
    user.page.select_option("#split", "val")
    user.press("Escape", "s")
    user.sees("#message", "Saved")
    new = {"action": "jump", "boundaries": [2, 20], "split": "val"}
    assert user.entry(folder, "a.mp4") == new

    user.press("n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    assert words(user) == (
        "0 stand: frames 0 to 9; 2 land: frames 10 to 29; unlabelled: frames 30 to 39"
    )
    assert user.value("#phase-frame-2") == "10"
    user.press("ArrowRight", "1", "s")
    user.sees("#message", "Saved")
    changed = {"action": "jump", "boundaries": [1, 10], "unlabelled_from": 30}
    assert user.entry(folder, "b.mp4") == changed

    user.press("n")
    user.sees("#name", "c.mp4")
    user.sees("#problems", "trim [0.01, 0.02] contains no frame")
    user.sees("#phases-note", "The times are in seconds and do not fit the video")
    assert not user.page.is_enabled("#split")
    user.press("1")
    user.sees("#message", "do not fit the video: correct them in labels.json")
    assert user.page.inner_text("#save") == "Saved"
    user.page.select_option("#show", "val")
    user.sees("#count", "1 shown")


def test_segments_with_gaps_are_kept(browser_page, address, folder):  # noqa: F811
    entry = {"action": "jump", "segments": [[5, 10, "fly"], [20, 30, 0]]}
    write(folder, {"a.mp4": entry})
    user = User(browser_page(), address)
    assert words(user) == (
        "unlabelled: frames 0 to 4; 1 fly: frames 5 to 9; unlabelled: frames 10 to 19; "
        "0 stand: frames 20 to 29; unlabelled: frames 30 to 39"
    )
    user.press("1")
    user.sees("#message", "These labels are a list")
    user.page.fill("#remark", "kept")
    user.press("Enter", "s")
    user.sees("#message", "Saved")
    segments = [[5, 10, 1], [20, 30, 0]]
    assert user.entry(folder, "a.mp4") == {"action": "jump", "segments": segments, "remark": "kept"}
    user.page.click("#drop-phases")
    assert words(user) == f"unlabelled: frames 0 to {FRAMES - 1}"


def test_class_sets_are_shown_but_not_edited(browser_page, address, folder):  # noqa: F811
    labels = {"fine": {"boundaries": [30]}, "coarse": {"boundaries": []}}
    content = {
        "class_sets": {"fine": CLASSES, "coarse": {"jump": ["all"]}},
        "videos": {"a.mp4": {"action": "jump", "labels": labels, "trim": [0, 35]}},
    }
    (folder / "labels.json").write_text(json.dumps(content))
    user = User(browser_page(), address)
    user.sees("#banners", "labels.json has class sets; the first one is shown here")
    user.sees("#phases-note", "labels.json has labels of class sets here (fine, coarse)")
    before = "0 stand: frames 0 to 29; 1 fly: frames 30 to 35; not used: frames 36 to 39"
    assert words(user) == before
    for keys in (["1"], ["0"], ["["], ["End", "Backspace"]):
        user.press(*keys)
        user.sees("#message", "edit the file itself")
    assert words(user) == before
    for field in ("action", "split", "remark", "trim-first", "trim-clear", "add-phase"):
        assert not user.page.is_enabled(f"#{field}")
    assert not user.page.is_visible("#drop-phases")
    assert user.page.get_attribute("body", "class") in (None, "")
    assert read_labels(folder / "labels.json").content == content
