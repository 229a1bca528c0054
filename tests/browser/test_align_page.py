"""The page of `training.align --open` in Chromium, from disk."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fastseq.video import write_video
from training import align
from training.evaluation import encoders
from training.recipe.schema import plain_config
from training.runs.model import Restored

pytestmark = [pytest.mark.browser, pytest.mark.process]

EARLY, LATE = np.linspace(40, 160, 31).round(), np.linspace(100, 220, 21).round()


class Grey(torch.nn.Module):
    """Embeds a frame by its grey level alone."""

    use_positions, pooled = True, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        angle = (frames.float().mean(dim=(2, 3, 4)) - 40) / 180 * torch.pi / 2
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    files = []
    for name, levels in (("a b.mp4", EARLY), ("c.mp4", LATE)):
        frames = (np.full((32, 32, 3), level, np.uint8) for level in levels)
        write_video(folder / name, frames, 25.0)
        files.append(str(folder / name))
    values = {"data.folder": "none", "data.engine": "pyav", "augmentation.size": 16}
    cfg = OmegaConf.structured(plain_config(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_load", lambda run, **_: Restored(Grey(), cfg))
        options = ["--run", "run", "--out", str(folder / "out"), "--open", "--threshold", "0.999"]
        assert align.main([*files, *options]) == 0
    return (folder / "out" / "alignment.html").as_uri()


def frames(page, row):
    """Of a, b and b without alignment at a row of a; None where a panel is empty."""
    page.locator("#player-slider").fill(str(row))
    page.wait_for_function(
        "row => document.getElementById('player-a').dataset.row === String(row)", arg=row
    )
    found = [page.locator(f"#player-{n}").get_attribute("data-frame") for n in ("a", "b", "even")]
    return [int(frame) if frame else None for frame in found]


def test_what_goes_together_is_in_step_and_the_rest_is_empty(browser_page, address):
    page = browser_page()
    page.goto(address)
    assert page.locator("h1").inner_text() == "a b.mp4 and c.mp4"
    assert frames(page, 3) == [3, None, 2]
    a, b, _ = frames(page, 25)
    assert a == 25
    assert abs(LATE[b] - EARLY[25]) <= 6
    page.locator("#player-swap").click()
    a, b, _ = frames(page, 4)
    assert abs(EARLY[b] - LATE[4]) <= 6
    assert frames(page, 19)[:2] == [19, None]
    text = page.locator("main").inner_text()
    assert "c.mp4: frames 0 to " in text
    assert "Events and their errors need the labels of both videos." in text
    assert page.locator("#similarity-canvas").count() == 1
