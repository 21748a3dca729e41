"""A browser for tests of pages: the Chromium of the system, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Names of the program in distributions of Linux.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator:
    """A running Chromium (playwright's `Browser`), which asks for nothing beyond this machine.

    Skips the test, and says why, where the program or the package playwright is not installed.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium is installed ({', '.join(PROGRAMS)}); in Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        # Its sandbox needs rights that containers lack; only pages that tests have made are opened.
        options = ["--no-sandbox", "--disable-background-networking", "--proxy-server=127.0.0.1:9"]
        browser = driver.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


def assert_fits(page) -> None:
    """Fails where a page scrolls sideways, or is narrower than its window."""
    widths = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    assert widths[0] == widths[1] == page.viewport_size["width"]


def open_file(browser, file: Path, width: int, scheme: str = "light"):
    """A page of its own with a file, in a window of this width, for readers who prefer `scheme` ("light", "dark")."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    return page
