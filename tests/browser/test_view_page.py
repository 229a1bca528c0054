"""The page of `view` in Chromium: labels set by keys, saved, and read by training."""

import io
import json
import re
import threading
import time

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL", reason='needs Pillow: pip install "fastseq[train]"')
from PIL import Image
from video.counter_video import HEIGHT, WIDTH, X264, encode, read_counter

from training.data.index import build_index
from training.data.labels import read_labels
from training.labelling.folder import VideoFolder
from training.labelling.server import LabelServer
from training.pages import html
from training.view import _private_page

pytestmark = [pytest.mark.browser, pytest.mark.process]
FRAMES = 40
LABELS = {
    "classes": {"jump": ["stand", "fly", "land"]},
    "videos": {"b.mp4": {"action": "jump", "split": "test", "boundaries": [5, 9]}},
}


@pytest.fixture
def folder(tmp_path):
    """Three videos with their frames' numbers in the picture, a file that is none, labels of b."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c"):
        encode(folder / f"{name}.mp4", FRAMES, options=X264)
    (folder / "d.mp4").write_bytes(b"no video")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


@pytest.fixture
def server(folder):
    server = LabelServer(VideoFolder(folder), html.STYLE.read_text(encoding="utf-8"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.folder.look_ahead()
    yield server
    server.shutdown()
    server.server_close()
    server.folder.close()


@pytest.fixture
def address(server):
    return server.url


class User:
    """Does what a user does, and sees what a user sees."""

    def __init__(self, page, url):
        self.page = page
        page.goto(url)
        self.sees_frame(0)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def sees_frame(self, number):
        self.page.wait_for_selector(f'#picture[data-frame="{number}"]')

    def sees(self, selector, text):
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def value(self, selector):
        return self.page.input_value(selector)

    def entry(self, folder, name):
        return read_labels(folder / "labels.json").videos.get(name)


@pytest.fixture
def user(browser_page, address):
    return User(browser_page(), address)


def counter(user) -> int:
    """The number in the picture as it is on the screen."""
    png = user.page.locator("#picture").screenshot()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    scale = min(picture.width / WIDTH, picture.height / HEIGHT)
    wide, high = WIDTH * scale, HEIGHT * scale
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    box = (left, top, left + wide, top + high)
    return read_counter(np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX, box)))


def test_boundaries_set_by_keys_are_what_training_reads(user, folder):
    user.sees("#name", "a.mp4")
    user.press("Shift+ArrowRight", "ArrowRight", "ArrowRight")
    user.sees_frame(12)
    assert counter(user) == 12
    user.press("1")  # the only action is taken
    assert user.value("#action") == "jump"
    user.sees(".video[aria-current]", "1 of 2")
    user.press("End", "Shift+ArrowLeft", "ArrowLeft")
    user.sees_frame(28)
    assert counter(user) == 28
    user.press("2")
    assert [user.value(f"#phase-frame-{k}") for k in (1, 2)] == ["12", "28"]
    assert user.page.title() == "● clips: labels"
    user.sees("#place", "frame 28 of 40 · 1.12 s of 1.60 s · 25.00 frames/s · 2 land")
    assert user.page.get_attribute("#timeline", "aria-label") == (
        "Phases over the video: 0 stand: frames 0 to 11; 1 fly: frames 12 to 27; "
        "2 land: frames 28 to 39"
    )
    user.press("s")
    user.sees("#message", "Saved.")
    user.sees("#message", "The file before this start is labels.json.bak.")
    assert user.page.title() == "clips: labels"

    expected = {"action": "jump", "boundaries": [12, 28]}
    assert read_labels(folder / "labels.json").content == {
        "classes": LABELS["classes"],
        "videos": {**LABELS["videos"], "a.mp4": expected},
    }
    records = {record.id: record for record in build_index(folder).videos}
    assert records["a.mp4"].phases.tolist() == [0] * 12 + [1] * 16 + [2] * 12


def test_undo_redo_and_removal(user):
    first, second = "#phase-frame-1", "#phase-frame-2"
    user.press("n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    user.press("ArrowDown", "ArrowDown")
    user.sees_frame(9)
    user.press("e", "E", "ArrowRight", "ArrowRight")
    user.sees_frame(11)
    user.press("Backspace")  # the last boundary before this frame
    assert (user.value(first), user.value(second)) == ("5", "")
    user.sees("#phases-note", "Not set: land. Saved like this, fly lasts up to the end.")
    user.press("1")
    assert (user.value(first), user.value(second)) == ("11", "")
    user.press("u")
    assert (user.value(first), user.value(second)) == ("5", "")
    user.press("p")
    user.sees("#name", "a.mp4")
    user.press("u")  # where the change was made
    user.sees("#name", "b.mp4")
    assert (user.value(first), user.value(second)) == ("5", "9")
    assert user.page.title() == "clips: labels"
    user.press("z", "z")
    assert (user.value(first), user.value(second)) == ("11", "")
    user.press("u", "2", "z")  # a new change ends what could be done again
    user.sees("#message", "Nothing to redo.")
    assert (user.value(first), user.value(second)) == ("5", "0")


def test_closing_with_unsaved_changes_warns(user):
    asked = []

    def stay(dialog):
        asked.append(dialog.type)
        dialog.dismiss()

    user.page.on("dialog", stay)
    user.press("ArrowRight", "1")
    user.sees(".video[aria-current]", "unsaved")
    with user.page.expect_event("dialog"):
        user.page.close(run_before_unload=True)
    assert asked == ["beforeunload"]
    user.press("Control+s")
    user.sees("#message", "Saved.")
    user.page.close(run_before_unload=True)
    assert asked == ["beforeunload"]


def test_an_error_is_shown_at_its_field_and_nothing_is_written(user, folder):
    before = (folder / "labels.json").read_bytes()
    user.page.click(".video:has-text('b.mp4')")
    user.sees("#name", "b.mp4")
    user.page.fill("#phase-frame-2", "3")
    user.press("Enter")
    error = "phase 2: begins before phase 1 (fly) at 5"
    user.sees("#phase-error-2", error)
    assert user.page.get_attribute("#phase-frame-2", "aria-invalid") == "true"
    user.press("s")
    user.sees("#message", "Not saved: b.mp4, phase 2")
    user.page.fill("#phase-frame-2", "41")
    user.press("Enter")
    user.sees("#phase-error-2", "past the end: at most 40")
    user.page.fill("#trim-last", "40")
    user.press("Enter")
    user.sees("#trim-error", "expected 0 <= first <= last <= 39")
    assert (folder / "labels.json").read_bytes() == before
    user.page.fill("#phase-frame-2", "40")
    user.press("Enter")
    user.sees("#phases td", "never reached")
    user.press("s")
    user.sees("#message", "Saved.")
    assert user.entry(folder, "b.mp4")["boundaries"] == [5, 40]


def test_labels_that_changed_on_disk_are_not_overwritten(chromium, address, folder):
    context = chromium.new_context()  # the console names the refusal, which `browser_page` forbids
    user = User(context.new_page(), address)
    (folder / "labels.json").write_text(json.dumps(LABELS | {"by": "another"}))
    user.press("ArrowRight", "1", "s")
    user.sees("#message", "Not saved: labels.json has changed on disk")
    assert read_labels(folder / "labels.json").content == LABELS | {"by": "another"}
    assert user.page.title() == "● clips: labels"
    context.close()


def test_a_folder_without_labels(browser_page, address, folder):
    (folder / "labels.json").unlink()
    user = User(browser_page(), address)
    user.press("1")
    user.sees("#message", "Add an action with its phases first.")
    user.page.fill("#new-action-name", "run")
    user.page.fill("#new-action-phases", "slow, fast")
    user.press("Enter")
    user.sees("#message", "")
    user.press("ArrowRight", "1", "[", "End", "ArrowLeft", "]")
    user.page.select_option("#split", "test")
    user.page.fill("#remark", "windy")
    user.press("Escape")
    user.page.fill("#phase-name-1", "quick")
    user.press("Enter", "n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    user.press("Home", "1", "s")
    user.sees("#message", "Saved.")
    assert read_labels(folder / "labels.json").content == {
        "classes": {"run": ["slow", "quick"]},
        "videos": {
            "a.mp4": {
                **{"action": "run", "boundaries": [1], "trim": [1, 38]},
                **{"split": "test", "remark": "windy"},
            },
            "b.mp4": {"action": "run", "boundaries": [0]},
        },
    }


def test_the_list_says_how_far_each_video_is(user):
    user.sees(".video:has-text('d.mp4')", "⚠ left out")
    items = user.page.locator(".video").all_inner_texts()
    assert [re.sub(r"\s+", " ", item) for item in items] == [
        "a.mp4 ○ no labels · no action · train",
        "b.mp4 ✓ labelled · jump · test",
        "c.mp4 ○ no labels · no action · train",
        "d.mp4 ⚠ left out · no action · train not a video file, or cut off before its index "
        "(FFmpeg cannot open it)",
    ]
    user.sees("#count", "1 of 4 labelled")
    user.page.select_option("#show", "open")
    assert user.page.locator(".video b").all_inner_texts() == ["a.mp4", "c.mp4"]
    user.page.fill("#search", "C.")
    user.press("Enter")
    user.sees("#name", "c.mp4")
    user.page.fill("#search", "")
    user.page.select_option("#show", "problem")
    user.page.click(".video")
    user.sees("#stage-message", "Training leaves this file out: not a video file")
    assert not user.page.is_visible("#fields")


def test_a_boundary_is_dragged(user, folder):
    user.press("n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    box = user.page.locator("#timeline").bounding_box()
    y, at = box["y"] + 30, lambda frame: box["x"] + box["width"] * frame / FRAMES
    user.page.mouse.move(at(9), y)
    user.page.mouse.down()
    user.page.mouse.move(at(15.5), y, steps=4)
    user.sees_frame(15)
    user.page.mouse.move(at(20.5), y, steps=4)
    user.page.mouse.up()
    assert user.value("#phase-frame-2") == "20"
    user.page.mouse.click(at(30.5), y)
    user.sees_frame(30)
    assert counter(user) == 30
    user.press("u")  # one step for the whole way
    assert user.value("#phase-frame-2") == "9"


def test_play_goes_to_the_end_at_the_rate_of_the_file(user):
    user.page.select_option("#speed", "2")
    user.press("Space")
    user.sees("#play", "Pause")
    user.sees_frame(FRAMES - 1)
    user.sees("#play", "Play")
    user.press("Home", "Space")
    user.page.wait_for_timeout(300)
    user.press("Space")
    user.sees("#play", "Play")
    assert 0 < int(user.value("#slider")) < FRAMES - 1


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1000, False)])
def test_narrow_and_dark_pages_show_all_controls(browser_page, address, width, dark):
    user = User(browser_page(width=width, height=844, dark=dark), address)
    assert counter(user) == 0
    for button in user.page.locator("button:visible, select:visible, #timeline").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width, button.inner_text()
    user.press("?")
    user.sees("#help", "remove the boundary at this frame")
    user.press("Escape", "ArrowRight")
    user.sees_frame(1)


def test_lists_of_phases_are_kept_until_they_are_changed(browser_page, address, folder):
    steps_back = [0] * 10 + [1] * 10 + [0] * 20
    in_order = [0] * 10 + [1] * 20 + [-1] * 10
    content = {
        "classes": LABELS["classes"],
        "videos": {
            "a.mp4": {"action": "jump", "phases": steps_back},
            "b.mp4": {"action": "jump", "phases": in_order},
        },
    }
    (folder / "labels.json").write_text(json.dumps(content))
    user = User(browser_page(), address)
    user.sees("#phases-note", "a list with one phase for each frame")
    user.press("1")
    user.sees("#message", "These labels are a list")
    user.page.select_option("#split", "test")
    user.press("n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    assert user.value("#phase-frame-1") == "10"
    user.press("ArrowRight", "1", "s")
    user.sees("#message", "Saved.")
    assert user.entry(folder, "a.mp4") == {
        **{"action": "jump", "phases": steps_back, "split": "test"}
    }
    assert user.entry(folder, "b.mp4") == {
        **{"action": "jump", "boundaries": [1], "unlabelled_from": 30}
    }


def test_frames_without_a_label_stay_so_when_a_list_becomes_boundaries(
    browser_page, address, folder
):
    in_order, steps_back = [0] * 10 + [1] * 20 + [-1] * 10, [0] * 10 + [1] * 10 + [0] * 20
    content = {
        "classes": LABELS["classes"],
        "videos": {
            "a.mp4": {"action": "jump", "phases": in_order, "unlabelled_from": 25},
            "b.mp4": {"action": "jump", "phases": steps_back, "unlabelled_from": 35},
        },
    }
    (folder / "labels.json").write_text(json.dumps(content))
    user = User(browser_page(), address)
    assert user.page.get_attribute("#timeline", "aria-label") == (
        "Phases over the video: 0 stand: frames 0 to 9; 1 fly: frames 10 to 24; "
        "unlabelled: frames 25 to 39"
    )
    user.press("ArrowRight", "1", "n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    user.page.click("#drop-phases")
    user.press("s")
    user.sees("#message", "Saved.")
    assert user.entry(folder, "a.mp4") == {
        **{"action": "jump", "boundaries": [1], "unlabelled_from": 25}
    }
    assert user.entry(folder, "b.mp4") == {"action": "jump"}


def waits_for(value, expected):
    end = time.monotonic() + 20
    while value() != expected and time.monotonic() < end:
        time.sleep(0.02)
    assert value() == expected


def test_the_server_knows_what_each_tab_has_not_saved(browser_page, server):
    first = User(browser_page(), server.url)
    first.press("ArrowRight", "1")
    waits_for(lambda: server.folder.unsaved, ["a.mp4"])
    with _private_page(server.url) as uri:
        second = User(browser_page(), uri)
    second.press("n")
    second.sees("#name", "b.mp4")
    second.sees_frame(0)
    second.press("ArrowRight", "1")
    waits_for(lambda: server.folder.unsaved, ["a.mp4", "b.mp4"])
    first.page.on("dialog", lambda dialog: dialog.accept())
    first.page.reload()  # its changes are lost, and no longer unsaved
    waits_for(lambda: server.folder.unsaved, ["b.mp4"])
    second.press("s")
    second.sees("#message", "Saved.")
    waits_for(lambda: server.folder.unsaved, [])


def test_facts_come_after_a_request_that_failed(chromium, address):
    context = chromium.new_context()  # the console names the failure, which `browser_page` forbids
    page = context.new_page()
    page.route("**/known/*", lambda route: route.abort(), times=1)
    user = User(page, address)
    user.sees("#message", "the server does not answer")
    user.sees(".video:has-text('d.mp4')", "⚠ left out")
    context.close()


def test_a_video_that_is_all_phase_0_stays_so(browser_page, address, folder):
    whole = {"action": "jump", "boundaries": [], "unlabelled_from": 30}
    (folder / "labels.json").write_text(json.dumps(LABELS | {"videos": {"a.mp4": whole}}))
    user = User(browser_page(), address)
    user.sees(".video[aria-current]", "labelled")
    user.press("ArrowRight", "1", "Backspace")
    assert user.page.title() == "clips: labels"  # as it was
    user.press("n")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    user.press("0")
    user.sees("#message", "all of the video: 0 stand")
    user.press("n")
    user.sees("#name", "c.mp4")
    user.sees_frame(0)
    user.press("1", "0")
    user.sees("#message", "Phase 0 begins with the video.")
    user.press("Backspace", "s")
    user.sees("#message", "Saved.")
    assert user.entry(folder, "a.mp4") == whole
    assert user.entry(folder, "b.mp4") == {"action": "jump", "boundaries": []}
    assert user.entry(folder, "c.mp4") == {"action": "jump"}  # no boundary was ever left
    user.press("p")
    user.sees("#name", "b.mp4")
    user.sees_frame(0)
    user.press("Backspace", "s")
    user.sees("#message", "Saved.")
    assert user.entry(folder, "b.mp4") == {"action": "jump"}
