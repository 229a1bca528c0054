"""The player of two videos in step: markup, style and scripts of a page, without any library.

What a page shows is a payload: a dictionary that `training.pages.payload` makes and that travels in
the page as JSON. The scripts of this folder read it in the browser:

    player_data.js      payload, decoded pictures, similarities of a pair
    player_drawing.js   colours, markers, canvases
    player_map.js       similarity map
    player_plot.js      plots of the embeddings
    player_events.js    events along the slider and their table
    player.js           panels, controls, keys

Tests in a browser: `python -m pytest tests/browser`. They need Chromium (`apt install chromium`, or
its path in FASTSEQ_CHROMIUM) and `pip install playwright`; they are skipped without a browser, and
fail without one where FASTSEQ_BROWSER=required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = ("data", "drawing", "map", "plot", "events")
SPEEDS = (0.1, 0.25, 0.5, 1, 2, 4)
KEYS = {
    "space": "play or pause",
    "← →": "one frame back or forward",
    "shift ← →": "ten frames back or forward",
    "e": "next event",
    "n p": "next or previous pair",
    "s": "swap a and b",
    "+ −": "faster or slower",
}
PANELS = {
    "a": "<b>a</b> plays",
    "b": "<b>b</b> in step with a",
    "even": "<b>b</b> without alignment",
}


def player(payload: Mapping[str, Any]) -> str:
    """The player as HTML: a section with its style, its scripts and the payload inside.

    payload: "start", "classes", "videos" and "pairs" as `training.pages.payload.payload` returns
        them. Without any pair the section is a sentence that says so.

    The page holds one player, and may hold `similarity_map` and `embedding_plot` at any place:
    the scripts run after the whole body is there and find them by their ids.
    """
    heading = '<section id="player">\n<h2>Two videos in step</h2>\n'
    if not payload["pairs"]:
        return (
            f"{heading}<p>No two of the videos shown share an action, so there is no pair to "
            "play.</p>\n</section>"
        )
    # "<" would end the script element at "</script>" within a name.
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    scripts = "\n".join(
        (FOLDER / f"{name}.js").read_text(encoding="utf-8")
        for name in (*(f"player_{part}" for part in SCRIPTS), "player")
    )
    style = (FOLDER / "player.css").read_text(encoding="utf-8")
    # The colours that phases have in the pictures of the same page.
    from training.evaluation.plots import PHASE_COLOURS

    style += "".join(f":root {{ --phase-{k}: {c}; }}\n" for k, c in enumerate(PHASE_COLOURS))
    scripts = f"const PHASE_COLOURS = {len(PHASE_COLOURS)};\n{scripts}"
    return (
        f"<style>\n{style}</style>\n{heading}{_controls()}</section>\n"
        f'<script type="application/json" id="player-data">{data}</script>\n'
        f'<script type="module">\n{scripts}</script>'
    )


def _controls() -> str:
    panels = "".join(
        f'<figure class="player-{name}"><p class="player-role">{role}</p>'
        f'<canvas id="player-{name}" role="img" data-frame="" data-row=""></canvas>'
        f'<figcaption id="player-{name}-caption"><b></b><span></span><span></span></figcaption>'
        "</figure>\n"
        for name, role in PANELS.items()
    )
    speeds = "".join(
        f'<option value="{speed}"{" selected" if speed == 1 else ""}>{speed}×</option>'
        for speed in SPEEDS
    )
    keys = "".join(
        "<dt>" + " ".join(f"<kbd>{key}</kbd>" for key in keys.split()) + f"</dt><dd>{text}</dd>"
        for keys, text in KEYS.items()
    )
    return f"""\
<noscript><p>The player needs JavaScript; everything else on this page is readable without.</p>
</noscript>
<div class="player-choice">
<label>video a<select id="player-choose-a"></select></label>
<button type="button" id="player-swap" title="swap a and b (s)">Swap</button>
<label>video b<select id="player-choose-b"></select></label>
<div class="player-pairs">
<button type="button" id="player-previous" title="previous pair (p)">Previous</button>
<span id="player-pair-number"></span>
<button type="button" id="player-next" title="next pair (n)">Next pair</button>
</div>
</div>
<div class="player-panels" id="player-panels">
{panels}</div>
<div class="player-controls">
<div class="player-ticks" id="player-ticks-a" aria-hidden="true"></div>
<input type="range" id="player-slider" min="0" max="0" value="0" aria-label="frame of video a">
<div class="player-ticks" id="player-ticks-b" aria-hidden="true"></div>
<div class="player-row">
<button type="button" id="player-play" title="play or pause (space)">Play</button>
<button type="button" id="player-back" aria-label="one frame back" title="left arrow">−1\
<span class="player-wide"> frame</span></button>
<button type="button" id="player-forward" aria-label="one frame forward" title="right arrow">+1\
<span class="player-wide"> frame</span></button>
<label><span class="player-wide">speed</span>
<select id="player-speed" aria-label="speed">{speeds}</select></label>
</div>
</div>
<div class="player-row">
<p id="player-status" role="status" aria-live="polite"></p>
<label><input type="checkbox" id="player-compare" checked>same moment without alignment</label>
</div>
<div id="player-events"></div>
<details class="player-keys"><summary>Keys</summary><dl>{keys}</dl></details>
"""


def similarity_map() -> str:
    """The similarity map as HTML: every frame of a with every frame of b; `player` draws it."""
    return """\
<section id="similarity-map">
<h2>Similarity of all frames</h2>
<p id="similarity-sentence"></p>
<canvas id="similarity-canvas" tabindex="0" role="slider" aria-valuemin="0" aria-valuenow="0"
 aria-label="similarity map: frame of video a"></canvas>
<ul class="map-legend">
<li><span id="similarity-low"></span><span id="similarity-ramp"></span>
<span id="similarity-high"></span> cosine similarity</li>
<li>solid line: alignment</li><li>dotted lines: phase boundaries</li>
<li>cross: frames shown above</li>
</ul>
<p class="quiet">Click or drag to show a frame of a. With the map in focus, arrow keys, Page Up and
Page Down, Home and End move it.</p>
</section>"""


def embedding_plot() -> str:
    """The embeddings in two dimensions as HTML, by phase and by video; `player` draws them."""
    plots = "".join(
        f"<div><h3>By {name}</h3>"
        f'<canvas id="embedding-by-{name}" role="img" '
        f'aria-label="embeddings of all frames, coloured by {name}"></canvas>'
        f'<ul class="embedding-legend" id="embedding-by-{name}-legend"></ul></div>\n'
        for name in ("phase", "video")
    )
    return f"""\
<section id="embedding-plot">
<h2>Embeddings in two dimensions</h2>
<p>One mark per frame: the first two principal components of the embeddings. Rings mark the frames
of a and b that the player shows. Where the network has found the phases, the same phase of all
videos lies in one place; where it mostly sees how a video looks, each video lies apart.</p>
<div class="embedding-plots">
{plots}</div>
<p id="embedding-hover" class="quiet">Point at a mark to read its video, frame and phase.</p>
</section>"""
