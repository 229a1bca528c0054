"""Pages in Chromium. A test fails at its end on a page's errors and on requests to a network."""

import os
import shutil
from urllib.parse import urlsplit

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("file", "data", "blob", "about")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _missing(reason: str) -> None:
    text = (
        f"{reason}; to install: apt install chromium, pip install playwright; "
        "FASTSEQ_CHROMIUM names another browser"
    )
    if os.environ.get("FASTSEQ_BROWSER") == "required":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests of a process."""
    program = os.environ.get("FASTSEQ_CHROMIUM") or next(
        filter(None, map(shutil.which, CHROMIUM)), None
    )
    if program is None:
        _missing("no Chromium on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        _missing(f"{error}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium):
    """A factory of pages: ``browser_page(width=1200, height=900, dark=False)``.

    At the end the test fails on errors in the console, exceptions of scripts, and requests to
    anything but files, data in the page and servers on loopback. ``browser_page.problems`` holds
    them until then.
    """
    contexts, problems = [], []

    def check_request(request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in LOCAL and url.hostname not in LOOPBACK:
            problems.append(f"request: {request.url}")

    def check_message(message) -> None:
        if message.type == "error":
            problems.append(f"console: {message.text}")

    def make(width: int = 1200, height: int = 900, dark: bool = False):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", check_message)
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("request", check_request)
        return page

    make.problems = problems
    yield make
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def made():
    from made_payload import payload  # Pillow

    return payload()


@pytest.fixture(scope="session")
def address(made, tmp_path_factory):
    from player_page import write_page

    return write_page(tmp_path_factory.mktemp("page"), made)


@pytest.fixture
def opened(browser_page, address):
    """A page from disk, at the first frame of the first pair."""
    from player_page import wait_for

    page = browser_page()
    page.goto(address)
    wait_for(page, 0)
    return page
