"""The site in Chromium: no request leaves the machine, it fits a phone, both schemes work."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from built_site import site  # noqa: F401, a fixture

pytestmark = pytest.mark.browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address(site):  # noqa: F811
    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["index", "api", "how_the_kernels_work", "ops/soft_dtw"])
def test_pages_fit_a_phone(browser_page, address, name):
    page = browser_page(width=390)
    page.goto(f"{address}/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_search_finds_a_name(browser_page, address):
    page = browser_page()
    # A text that is typed before the index of all pages is ready, as on a busy machine, is not
    # searched for, nor is what is typed after it.
    for wait in (0.5, 2, 5, 10, 20, 40):  # seconds
        page.goto(f"{address}/index.html")
        page.wait_for_timeout(1000 * wait)
        page.fill(".md-search__input", "soft_dtw_barycenter")
        page.wait_for_timeout(1000 + 200 * wait)
        links = page.eval_on_selector_all(
            ".md-search-result__link", "links => links.map(link => link.href)"
        )
        if links:
            break
    assert any("api.html" in link for link in links), links


def test_pictures_follow_the_scheme_that_the_reader_picks(browser_page, address):
    page = browser_page()
    page.goto(f"{address}/how_the_kernels_work.html")
    picture = page.locator('img[src$="kernels_tile.svg"]')
    light = picture.screenshot()
    page.click('label[title="Switch to dark mode"]')
    assert page.get_attribute("body", "data-md-color-scheme") == "slate"
    page.wait_for_timeout(300)
    dark = picture.screenshot()
    assert brightness(light) > 0.85
    assert brightness(dark) < 0.2  # with the colours of light pages 0.29


def brightness(png: bytes) -> float:
    """Mean of a picture, 0 black to 1 white."""
    image = pytest.importorskip("PIL.Image")
    import io

    grey = image.open(io.BytesIO(png)).convert("L").resize((64, 64))
    return sum(grey.tobytes()) / 64 / 64 / 255
