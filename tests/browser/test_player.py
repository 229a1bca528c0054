"""The player of two videos in step, in Chromium: what its controls show, by the pixels."""

import pytest
from made_payload import brightness, payload

from training.pages import html
from training.pages.player import embedding_plot, player, similarity_map

pytestmark = [pytest.mark.browser, pytest.mark.process]

PAIRS = [(0, 1), (0, 2), (1, 2), (3, 4)]
ODD = (
    "</script><img src=x onerror=alert(1)>",
    "\"quotes\" & 'more' <b>.mp4",
    "名前 é 🎬.mp4",
    "\\u003c ${x} `y`.mp4",
)


def write_page(folder, made):
    file = folder / "page.html"
    body = ["<h1>Made</h1>", player(made), similarity_map(), embedding_plot()]
    file.write_text(html.page("made", body), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def made():
    return payload()


@pytest.fixture(scope="module")
def address(made, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page"), made)


@pytest.fixture
def opened(browser_page, address):
    """A page from disk, at the first frame of the first pair."""
    page = browser_page()
    page.goto(address)
    wait_for(page, 0)
    return page


def wait_for(page, row):
    """Until the panel of a shows this row and the others what belongs to it."""
    page.wait_for_function(
        """row => {
          const panel = (name) => document.getElementById(`player-${name}`).dataset;
          const map = document.getElementById("similarity-canvas").dataset;
          return panel("a").row === String(row) && map.rowA === String(row) &&
            panel("b").row === map.rowB && panel("even").row !== "" }""",
        arg=row,
        polling=20,
    )


def pair_of(page):
    return tuple(int(page.locator(f"#player-choose-{name}").input_value()) for name in ("a", "b"))


def row_of(page):
    return int(page.locator("#player-slider").input_value())


def shown(page, name):
    """The panel's data-frame, and the grey value of a pixel of its canvas; None where empty."""
    frame, (grey, *_, alpha) = page.evaluate(
        """id => { const canvas = document.getElementById(id);
        return [canvas.dataset.frame,
                [...canvas.getContext("2d").getImageData(10, 10, 1, 1).data]] }""",
        f"player-{name}",
    )
    return frame, grey if alpha else None


def check(page, made, row, pair=None):
    """The three panels show the frames that belong to a row of a, by name and by pixels."""
    a, b = pair or pair_of(page)
    known = made["pairs"][f"{a},{b}"]
    wait_for(page, row)
    for name, index, wanted in [
        ("a", a, row),
        ("b", b, known["matched"][row]),
        ("even", b, known["even"][row]),
    ]:
        video = made["videos"][index]
        if wanted < 0:
            assert shown(page, name) == ("", None)
            continue
        frame = video["frames"][wanted]
        assert shown(page, name) == (str(frame), brightness(frame, video["total"])), (name, row)
        caption = page.locator(f"#player-{name}-caption").inner_text()
        place = f"{video['id']}\nframe {frame} of {video['total']}\n{frame / video['fps']:.2f} s, "
        assert caption.startswith(place)


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


def test_the_similarity_map_jumps_and_follows(opened, made):
    canvas = opened.locator("#similarity-canvas")
    box = canvas.bounding_box()
    width = box["width"] - 52 - 10  # margins for the axes
    canvas.click(position={"x": 52 + width * 40.5 / 60, "y": 100})
    check(opened, made, 40, (0, 1))
    assert canvas.get_attribute("data-row-a") == "40"
    assert canvas.get_attribute("data-row-b") == "60"
    canvas.press("PageUp")
    canvas.press("ArrowRight")
    check(opened, made, 31)
    canvas.press("End")
    check(opened, made, 59)
    box = canvas.bounding_box()
    x, y = box["x"] + 52, box["y"] + 60
    opened.mouse.move(x + 2, y)
    opened.mouse.down()
    opened.mouse.move(x + width * 10.5 / 60, y)
    opened.mouse.up()
    opened.mouse.move(x + width * 50.5 / 60, y)
    check(opened, made, 10)


def test_the_similarity_map_has_the_colours_of_its_values(opened):
    """Yellow where frames are alike, blue where they are not; the cross covers neither."""
    colour = """([x, y]) => {
      const canvas = document.getElementById("similarity-canvas");
      const at = (value) => Math.round(value * devicePixelRatio);
      return [...canvas.getContext("2d").getImageData(at(x), at(y), 1, 1).data] }"""
    width = opened.locator("#similarity-canvas").bounding_box()["width"] - 62
    height = opened.locator("#similarity-canvas").bounding_box()["height"] - 50
    red, green, blue, _ = opened.evaluate(colour, [52 + 0.05 * width, 8 + 0.1 * height])
    assert min(red, green) > 200 > 100 > blue
    red, green, blue, _ = opened.evaluate(colour, [52 + 0.97 * width, 8 + 0.1 * height])
    assert red < 30 < green < blue
    assert float(opened.locator("#similarity-high").inner_text()) > 0.95
    assert opened.locator("#similarity-low").inner_text().startswith("−0.9")


def test_events_jump_and_state_their_errors(opened, made):
    events = opened.locator("#player-events")
    rows = [row.split("\t") for row in events.locator("tbody tr").all_inner_texts()]
    assert [row[0].strip() for row in rows] == ["1 swing", "2 follow"]
    assert rows[0][1:] == ["38", "38", "0 (0.00 s)", "−14 (0.56 s)"]
    assert events.locator("p").first.inner_text() == (
        "Mean absolute error over 2 events: 0.0 frames (0.00 s) with the alignment, "
        "11.0 frames (0.44 s) without."
    )
    events.get_by_role("button", name="follow").click()
    check(opened, made, 36)
    assert events.locator("tr.now").count() == 1
    ticks = opened.locator("#player-ticks-a span")
    assert ticks.all_inner_texts() == ["▼1 swing", "▼2 follow"]
    # A mark stands above the handle of the slider at the event's row.
    slider = opened.locator("#player-slider").bounding_box()
    middle = slider["x"] + 8 + (slider["width"] - 16) * 36 / 59
    assert abs(ticks.nth(1).bounding_box()["x"] - middle) < 10


def test_videos_without_labels(browser_page, tmp_path):
    page = browser_page()
    page.goto(write_page(tmp_path, payload(labels=False)))
    wait_for(page, 0)
    assert page.locator("#player-events table").count() == 0
    text = page.locator("#player-events").inner_text()
    assert text.startswith("No phase labels: one.mp4, two.mp4.")
    page.keyboard.press("e")  # no event: nothing moves
    assert row_of(page) == 0
    assert page.locator("#embedding-by-phase-legend").inner_text() == "unlabelled"
    assert "unlabelled" in page.locator("#player-a-caption").inner_text()


def test_outside_an_open_alignment(opened, made):
    opened.keyboard.press("n")
    check(opened, made, 0, (0, 2))
    assert "outside the alignment" in opened.locator("#player-b-caption").inner_text()
    assert opened.locator("#similarity-canvas").get_attribute("data-row-b") == ""
    for row in (30, 59, 20):  # inside, outside, inside
        opened.locator("#player-slider").fill(str(row))
        check(opened, made, row, (0, 2))


def test_a_video_of_one_frame(opened, made):
    opened.locator("#player-choose-a").select_option(label="single.mp4")
    check(opened, made, 0, (4, 3))
    for key in (" ", "ArrowRight", "e", "End"):
        opened.keyboard.press(key)
    assert opened.locator("#player-play").inner_text() == "Play"
    assert row_of(opened) == 0
    opened.keyboard.press("s")
    opened.locator("#player-slider").fill("11")
    check(opened, made, 11, (3, 4))


def test_odd_names(browser_page, tmp_path):
    page = browser_page()
    page.goto(write_page(tmp_path, payload(ODD)))
    wait_for(page, 0)
    names = page.locator("#player-choose-a option").all_inner_texts()
    assert names == [*ODD, "single.mp4"]
    assert page.locator("#player-a-caption b").inner_text() == ODD[0]
    assert page.locator("main img, main b:has(b)").count() == 0


def test_embedding_plots(opened, made):
    legend = opened.locator("#embedding-by-phase-legend li").all_inner_texts()
    assert legend == ["A: wait", "B: swing", "C: follow"]
    by_video = opened.locator("#embedding-by-video-legend li").all_inner_texts()
    assert by_video == ["one.mp4", "two.mp4", "three.mp4"]  # those of the pair's action
    canvas = opened.locator("#embedding-by-phase")
    box = canvas.bounding_box()
    x, y = made["videos"][0]["points"][30]
    position = {
        "x": 16 + (1 + x) / 2 * (box["width"] - 32),
        "y": 16 + (1 - y) / 2 * (box["height"] - 32),
    }
    canvas.hover(position=position)
    text = opened.locator("#embedding-hover").inner_text()
    assert "swing" in text
    assert "frame" in text
    pixels = "document.getElementById('embedding-by-phase').toDataURL()"
    before = opened.evaluate(pixels)
    opened.keyboard.press("ArrowRight")  # the rings move
    assert opened.evaluate(pixels) != before


def test_phone(browser_page, address):
    page = browser_page(width=390, height=560)
    page.goto(address)
    wait_for(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    a, b = (page.locator(f"#player-{name}").bounding_box() for name in ("a", "b"))
    assert a["y"] == b["y"]
    assert a["x"] + a["width"] <= b["x"]
    for name in ("play", "back", "forward", "speed", "next", "swap"):
        box = page.locator(f"#player-{name}").bounding_box()
        assert box["height"] >= 44, name
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= 390, name
    wide = "() => { const it = document.querySelector('#player-events .scroll');"
    assert page.evaluate(f"{wide} return it.scrollWidth - it.clientWidth }}") == 0
    page.evaluate("window.scrollTo(0, 0)")  # the controls stay at the lower edge
    box = page.locator("#player-play").bounding_box()
    assert box["y"] + box["height"] <= 560
    page.locator("#similarity-canvas").scroll_into_view_if_needed()
    assert page.locator("#similarity-canvas").bounding_box()["width"] <= 390


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((value) => value / 255).map(
      (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll("main *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.closest("script, style, :disabled")) continue;
    const [p, q] = [parse(getComputedStyle(one).color), behind(one)].map(luminance);
    found.push([(Math.max(p, q) + 0.05) / (Math.min(p, q) + 0.05), one.textContent.slice(0, 30)]);
  }
  return found.sort((p, q) => p[0] - q[0]);
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_text(browser_page, address, dark):
    page = browser_page(dark=dark)
    page.goto(address)
    wait_for(page, 0)
    found = page.evaluate(CONTRAST)
    assert len(found) > 30
    assert found[0][0] >= 4.5, found[:3]  # WCAG 2.2, level AA
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") != dark


def test_without_javascript(chromium, address):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert "The player needs JavaScript" in page.locator("#player").inner_text()
    context.close()


def test_without_any_pair(browser_page, tmp_path):
    page = browser_page()
    page.goto(write_page(tmp_path, payload() | {"pairs": {}}))
    assert "no pair to play" in page.locator("#player").inner_text()


def test_errors_and_requests_of_a_page_are_found(browser_page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        "<img src='http://192.0.2.1/a.png'>"
        "<script>console.error('one'); throw Error('two')</script>"
    )
    page = browser_page()
    page.route("http://**", lambda route: route.abort())
    with page.expect_console_message(lambda message: "Failed to load" in message.text):
        page.goto(file.as_uri())
    browser_page.problems.sort()
    kinds = [problem.split(":")[0] for problem in browser_page.problems]
    browser_page.problems.clear()
    assert {"console", "request", "script"} <= {*kinds}
