"""The player of two videos in step, in Chromium: what its controls show, by the pixels."""

import pytest
from player_page import check, pair_of, row_of

pytestmark = [pytest.mark.browser, pytest.mark.process]

PAIRS = [(0, 1), (0, 2), (1, 2), (3, 4)]


def test_the_slider_moves_both_videos_to_the_aligned_frames(opened, made):
    for row in (0, 1, 17, 40, 59, 3):
        opened.locator("#player-slider").fill(str(row))
        check(opened, made, row, (0, 1))
    # b waits for 20 frames: in step with a it is 20 frames behind, without alignment it is not.
    assert made["pairs"]["0,1"]["matched"][40] == 60
    assert made["pairs"]["0,1"]["even"][40] == 54


def test_a_picture_that_is_decoded_late_does_not_replace_a_newer_one(opened, made):
    """Row 0 is decoded; row 30 is requested and left before its picture is there."""
    opened.evaluate(
        """async () => { const slider = document.getElementById("player-slider");
        for (const row of [30, 0]) {
          slider.value = row;
          slider.dispatchEvent(new Event("input"));
        }
        await new Promise((done) => setTimeout(done, 200)) }"""
    )
    check(opened, made, 0, (0, 1))


def test_next_and_previous_go_through_all_pairs(opened, made):
    for expected in [*PAIRS[1:], PAIRS[0]]:
        opened.get_by_role("button", name="Next pair").click()
        assert pair_of(opened) == expected
        check(opened, made, 0)
    opened.locator("#player-previous").click()
    assert pair_of(opened) == PAIRS[-1]
    assert opened.locator("#player-pair-number").inner_text() == "pair 4 of 4"


def test_choice_and_swap(opened, made):
    opened.locator("#player-choose-b").select_option(label="three.mp4")
    assert pair_of(opened) == (0, 2)
    assert opened.locator("#player-choose-b option").all_inner_texts() == [
        "two.mp4",
        "three.mp4",
    ]
    opened.locator("#player-swap").click()
    assert pair_of(opened) == (2, 0)
    opened.locator("#player-slider").fill("30")
    check(opened, made, 30, (2, 0))
    opened.locator("#player-choose-a").select_option(label="one.mp4")  # was b: the two swap
    assert pair_of(opened) == (0, 2)
    opened.locator("#player-choose-a").select_option(label="four.mp4")  # of another action
    assert pair_of(opened) == (3, 4)
    opened.locator("#player-choose-a").select_option(label="two.mp4")
    check(opened, made, 0, (1, 0))


def test_keys(opened, made):
    press = opened.keyboard.press
    for key, row in [
        ("ArrowRight", 1),
        ("Shift+ArrowRight", 11),
        ("ArrowLeft", 10),
        ("e", 18),
        ("e", 36),
        ("e", 18),
        ("Shift+ArrowLeft", 8),
        ("Shift+ArrowLeft", 0),
    ]:
        press(key)
        assert row_of(opened) == row, key
    check(opened, made, 0)
    press("n")
    assert pair_of(opened) == (0, 2)
    press("s")
    assert pair_of(opened) == (2, 0)
    press("p")
    assert pair_of(opened) == (0, 1)
    speed = opened.locator("#player-speed")
    press("+")
    assert speed.input_value() == "2"
    for _ in range(6):
        press("-")
    assert speed.input_value() == "0.1"


def test_keys_leave_typing_alone(opened):
    opened.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<input id=text>')"
    )
    opened.locator("#text").press_sequentially("n s e")
    assert opened.locator("#text").input_value() == "n s e"
    opened.locator("#player-speed").press("n")
    opened.locator("#player-back").press("Control+ArrowRight")
    assert (pair_of(opened), row_of(opened)) == ((0, 1), 0)
    opened.locator("#player-slider").press("Shift+ArrowRight")
    assert row_of(opened) == 10
    opened.locator("#player-forward").press(" ")  # presses the button, and only the button
    assert row_of(opened) == 11
    assert opened.locator("#player-play").inner_text() == "Play"


def test_play_keeps_time_and_stops_at_the_end(browser_page, address, made):
    page = browser_page()
    page.clock.install()
    page.goto(address)
    page.clock.pause_at(page.evaluate("Date.now() + 10_000"))
    play, status = page.locator("#player-play"), page.locator("#player-status")
    page.keyboard.press(" ")
    assert play.inner_text() == "Pause"
    assert status.get_attribute("aria-live") == "off"
    page.clock.run_for(1000)
    assert abs(row_of(page) - 30) <= 1  # 30 frames a second
    page.locator("#player-speed").select_option("0.5")
    page.clock.run_for(400)
    assert abs(row_of(page) - 36) <= 1
    page.keyboard.press(" ")
    row = row_of(page)
    page.clock.run_for(500)
    assert row_of(page) == row
    assert status.get_attribute("aria-live") == "polite"
    check(page, made, row)
    page.locator("#player-speed").select_option("4")
    play.click()
    page.clock.run_for(1000)
    check(page, made, 59)
    assert play.inner_text() == "Play"
    play.click()  # at the end: from the beginning
    page.clock.run_for(100)
    assert 0 < row_of(page) < 20


def test_a_late_tick_skips_frames(browser_page, address):
    page = browser_page()
    page.clock.install()
    page.goto(address)
    page.clock.pause_at(page.evaluate("Date.now() + 10_000"))
    page.locator("#player-play").click()
    page.clock.fast_forward(700)  # one tick
    page.clock.run_for(20)
    assert abs(row_of(page) - 21) <= 2


def test_step_buttons_and_status(opened):
    for _ in range(3):
        opened.locator("#player-forward").click()
    opened.locator("#player-back").click()
    status = opened.locator("#player-status")
    opened.wait_for_function(
        "() => document.getElementById('player-status').textContent.includes('22')"
    )
    assert status.inner_text() == (
        "a: frame 2 of 60, 0.07 s, wait; b: frame 22 of 80, 0.88 s, wait"
    )
    slider = opened.get_by_role("slider", name="frame of video a", exact=True)
    assert slider.get_attribute("aria-valuetext") == "frame 2 of 60, 0.07 s"


def test_comparison_can_be_hidden(opened):
    even = opened.locator("#player-even")
    assert even.is_visible()
    opened.get_by_label("same moment without alignment").uncheck()
    assert not even.is_visible()
    opened.locator("#player-compare").check()
    assert even.is_visible()
