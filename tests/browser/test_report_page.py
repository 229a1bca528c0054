"""The report of a run in Chromium, from disk: player, order of the page, phone width, dark mode."""

import json
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fastseq.video import write_video
from training import report
from training.data.index import build_index
from training.evaluation import encoders
from training.recipe.schema import plain_config
from training.runs.model import Restored

pytestmark = [pytest.mark.browser, pytest.mark.process]

SIDE, LENGTH = 32, 40
PHASES = ["rest", "lift", "hold"]
CUTS = {
    "train0": (9, 20),
    "train1": (12, 30),
    "test0": (6, 18),
    "test1": (20, 33),
    "test2": (14, 24),
}


def level(cuts):
    """Grey of every frame: 40 at the start, 100 and 160 where the next phases begin, then 220."""
    return np.interp(np.arange(LENGTH), [0, *cuts, LENGTH], [40, 100, 160, 220]).round()


class Grey(torch.nn.Module):
    """Embeds a frame by its grey level alone."""

    use_positions, pooled = True, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        angle = (frames.float().mean(dim=(2, 3, 4)) - 40) / 180 * torch.pi / 2
        waves = angle[..., None] * torch.arange(1, 5)
        return torch.cat([waves.cos(), waves.sin()], dim=-1)


def write_run(folder, videos):
    """The report of a network that knows the grey level, on these videos with their phases."""
    (folder / "videos").mkdir()
    entries = {}
    for name in videos:
        frames = (np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in level(CUTS[name]))
        write_video(folder / "videos" / f"{name}.mp4", frames, 25.0)
        split = name.rstrip("0123456789")
        entries[f"{name}.mp4"] = {"action": "up", "split": split, "boundaries": [*CUTS[name]]}
    content = {"classes": {"up": PHASES}, "videos": entries}
    (folder / "videos" / "labels.json").write_text(json.dumps(content))
    build_index(folder / "videos")
    values = {
        "data.folder": str(folder / "videos"),
        "data.engine": "pyav",
        "data.num_frames": 16,
        "augmentation.size": SIDE,
    }
    cfg = OmegaConf.structured(plain_config(values))
    run = folder / "run"
    run.mkdir()
    lines = [{"step": step, "loss": 5 / (1 + step), "seconds": 2.0 * step} for step in range(9)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_load", lambda run, **_: Restored(Grey(), cfg))
        assert report.main([str(run)]) == 0
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report"), CUTS)


def go_to(page, row):
    """Move the slider; back once every panel has drawn."""
    page.locator("#player-slider").fill(str(row))
    page.wait_for_function(
        "row => ['a', 'b', 'even'].every(name => document.getElementById(`player-${name}`)"
        ".dataset.row !== '') && document.getElementById('player-a').dataset.row === String(row)",
        arg=row,
    )


def shown(page, name):
    """The number of the frame in a panel, and the grey level of the middle of its picture."""
    return page.evaluate(
        """id => { const canvas = document.getElementById(id);
        const x = canvas.width / 2, y = canvas.height / 2;
        return [Number(canvas.dataset.frame),
                canvas.getContext("2d").getImageData(x, y, 1, 1).data[0]] }""",
        f"player-{name}",
    )


def names(page):
    """Names of the videos a and b."""
    return [
        page.locator(f"#player-choose-{which} option:checked").inner_text().removesuffix(".mp4")
        for which in "ab"
    ]


def check_events(page):
    """At each labelled event of a: b within 2 frames of its label; every picture is that frame."""
    a, b = names(page)
    off = []
    for mine, theirs in zip(CUTS[a], CUTS[b], strict=True):
        go_to(page, mine)
        frames = {}
        for panel, video in (("a", a), ("b", b), ("even", b)):
            frames[panel], grey = shown(page, panel)
            assert abs(grey - level(CUTS[video])[frames[panel]]) <= 4
        assert frames["a"] == mine
        assert abs(frames["b"] - theirs) <= 2
        off.append(abs(frames["even"] - theirs))
    assert max(off) > 3  # what the alignment is compared with
    return a, b


def test_events_lie_side_by_side_and_the_next_pair_too(browser_page, address):
    page = browser_page()
    page.goto(address)
    assert check_events(page) == ("test0", "test1")
    page.locator("#player-next").click()
    assert check_events(page) == ("test0", "test2")
    page.locator("#player-events button").nth(1).click()
    page.wait_for_function("() => document.getElementById('player-a').dataset.frame === '18'")
    page.locator("#player-swap").click()
    assert check_events(page) == ("test2", "test0")


def test_the_map_follows_and_leads(browser_page, address):
    page = browser_page()
    page.goto(address)
    go_to(page, 25)
    canvas = page.locator("#similarity-canvas")
    assert canvas.get_attribute("data-row-a") == "25"
    assert canvas.get_attribute("data-row-b") == str(shown(page, "b")[0])
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    page.wait_for_function("() => document.getElementById('player-a').dataset.row !== '25'")
    assert 10 < shown(page, "a")[0] < 30


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_in_order_at_every_width(browser_page, address, width, dark):
    page = browser_page(width=width, dark=dark)
    page.goto(address)
    assert page.locator("h2").all_inner_texts() == [
        "Two videos in step",
        "How good are the embeddings?",
        "Similarity of all frames",
        "Most similar frames",
        "Embeddings in two dimensions",
        "Map of the embeddings",
        "Embeddings over time",
        "Training loss",
        "What was run",
    ]
    verdict = page.locator(".verdict").inner_text()
    amount = r"\d+\.\d frames \(0\.\d\d s\)"
    assert re.fullmatch(
        "Better than the clock: by DTW, events carried from one test video to another are "
        rf"{amount} off on average, against {amount} for the clock\.",
        verdict,
    )
    assert page.locator("tr.main td").first.inner_text() == "trained"
    text = page.locator("main").inner_text()
    assert "Shown: all 3 test videos." in text
    assert "The page holds all 120 frames as pictures of up to 32 x 32 pixels" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink > paper) == dark
    for picture in page.locator("img").all():
        assert picture.evaluate("img => img.complete && img.naturalWidth > 0")


def test_one_test_video_has_no_player_and_the_page_says_why(browser_page, tmp_path):
    page = browser_page()
    page.goto(write_run(tmp_path, ["train0", "train1", "test0"]))
    text = page.locator("#player").inner_text()
    assert "There is only one test video, test0.mp4: nothing can be aligned" in text
    assert page.locator("canvas").count() == 0
