"""A page with the made payload, and what its panels show."""

from made_payload import brightness

from training.pages import html
from training.pages.player import embedding_plot, player, similarity_map


def write_page(folder, made):
    file = folder / "page.html"
    body = ["<h1>Made</h1>", player(made), similarity_map(), embedding_plot()]
    file.write_text(html.page("made", body), encoding="utf-8")
    return file.as_uri()


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
        time = video["times"][wanted]
        place = f"{video['id']}\nframe {frame} of {video['total']}\n{time:.2f} s, "
        assert caption.startswith(place)
