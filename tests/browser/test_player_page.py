"""The page around the player, in Chromium: map, events, plots, odd input, phone and contrast."""

import re

import pytest
from made_payload import payload
from matplotlib.colors import to_rgb
from player_page import check, row_of, wait_for, write_page

from training.evaluation.plots import PHASE_COLOURS

pytestmark = [pytest.mark.browser, pytest.mark.process]

ODD = (
    "</script><img src=x onerror=alert(1)>",
    "\"quotes\" & 'more' <b>.mp4",
    "名前 é 🎬.mp4",
    "\\u003c ${x} `y`.mp4",
)


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


def test_events_outside_the_alignment_count_in_neither_mean(browser_page, tmp_path):
    made = payload()
    inside, outside = made["pairs"]["0,1"]["events"]
    inside |= {"error": 2, "carried": inside["true"] + 2, "seconds": 0.1}
    inside |= {"even_error": -4, "even_seconds": -0.2}
    outside |= {"error": None, "carried": None, "seconds": None}
    outside |= {"even_error": 50, "even_seconds": 2.0}
    page = browser_page()
    page.goto(write_page(tmp_path, made))
    wait_for(page, 0)
    events = page.locator("#player-events")
    assert events.locator("p").first.inner_text() == (
        "Mean absolute error over 1 event: 2.0 frames (0.10 s) with the alignment, "
        "4.0 frames (0.20 s) without. Left out: 1 event lies outside the alignment."
    )
    assert "outside" in events.locator("tbody tr").nth(1).inner_text()


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


def test_phases_have_the_colours_of_the_pictures(opened):
    fills = """() => [...document.querySelectorAll("#embedding-by-phase-legend path")].map(
      (path) => getComputedStyle(path).fill)"""
    expected = [[round(255 * part) for part in to_rgb(one)] for one in PHASE_COLOURS[:3]]
    found = [[int(n) for n in re.findall(r"\d+", fill)] for fill in opened.evaluate(fills)]
    assert found == expected
    drawn = """([r, g, b]) => {
      const canvas = document.getElementById("embedding-by-phase");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const near = (at) => [r, g, b].every((value, k) => Math.abs(data[at + k] - value) < 4);
      let count = 0;
      for (let at = 0; at < data.length; at += 4) count += near(at) && data[at + 3] > 150;
      return count }"""
    assert min(opened.evaluate(drawn, rgb) for rgb in expected) > 50


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
