"""Milliseconds from a click in the app until the browser shows its effect, in Chromium; and pictures of the page.

The app and the browser run on this machine, as for the reader of `salvage app`. Needs the extras app and dev, which has
playwright, and a Chromium of the system.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import sync_playwright
from transformers import HfArgumentParser

from salvage_hf import Explainer
from salvage_hf.app.layout import Page
from salvage_hf.app.session import Models
from salvage_hf.app.words import CSS
from salvage_hf.arguments import AtLeast, arg, check_arguments
from salvage_hf.files import check_writable, write_json

#: Is true as soon as the picture with this id has changed since `_CHANGES_FROM`, and is drawn.
_CHANGED = """name => {
    const image = document.querySelector(`#${name} img`);
    return image && image.src !== window.before && image.complete && image.naturalWidth > 0;
}"""
_CHANGES_FROM = "name => { window.before = document.querySelector(`#${name} img`)?.src; }"


@dataclass
class AppBenchmarkArguments:
    """Arguments of scripts/performance/benchmark_app.py."""

    model: str = arg("", "The explainer or classifier: a name on the Hub or a folder.")
    classifier: str | None = arg(None, "The classifier of the explainer; the one that it states when not given.")
    picture: str = arg("", "The file of a picture.")
    rounds: Annotated[int, AtLeast(1)] = arg(10, "How often each event is measured.")
    output_dir: str = arg("outputs/benchmark_app", "The folder for results.json, wide.png and narrow.png.")

    def __post_init__(self):
        check_arguments(self)
        for name in ("model", "picture"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed")


def until_shown(page: BrowserPage, picture: str, event: Callable[[], object]) -> float:
    """Milliseconds until the picture with this id has changed."""
    page.evaluate(_CHANGES_FROM, picture)
    start = time.perf_counter()
    event()
    page.wait_for_function(_CHANGED, arg=picture, polling="raf")
    return 1000 * (time.perf_counter() - start)


def upload(page: BrowserPage, file: str) -> float:
    """Milliseconds from the choice of a file until its visible patches are shown."""
    page.wait_for_selector("input[type=file]", state="attached")
    return until_shown(page, "seen", lambda: page.set_input_files("input[type=file]", file))


def click_patch(page: BrowserPage, number: int) -> float:
    """Hides a patch of the middle, another one for another number, by the mouse."""
    box = page.locator("#seen img").bounding_box()
    across, down = (0.15 + 0.12 * (number % 7), 0.4 + 0.12 * (number // 7 % 4))
    place = {"x": box["width"] * across, "y": box["height"] * down}
    return until_shown(page, "seen", lambda: page.locator("#seen img").click(position=place))


def slide(page: BrowserPage, label: str, number: int, picture: str) -> float:
    """Moves the slider with this label, to another place for another number."""
    slider = page.get_by_label(label).and_(page.locator("input[type=range]"))
    return until_shown(page, picture, lambda: slider.fill(str(10 + 35 * number % 90 // 5 * 5)))


def choose_class(page: BrowserPage) -> float:
    """Chooses the next class by the keyboard."""
    control = page.get_by_label("Class", exact=True)
    control.click()
    control.press("ArrowDown")
    return until_shown(page, "map", lambda: control.press("Enter"))


def main() -> None:
    args = HfArgumentParser(AppBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    app = Page(Models(Explainer(args.model, classifier=args.classifier))).app
    _, url, _ = app.launch(prevent_thread_lock=True, css=CSS, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(url)
        times: dict[str, list[float]] = {"upload": [upload(page, args.picture)]}
        events: dict[str, Callable[[int], float]] = {
            "click on a patch": lambda number: click_patch(page, number),
            "another class": lambda _: choose_class(page),
            "visible patches along the map": lambda number: slide(page, "Visible patches in percent", number, "seen"),
            "opacity": lambda number: slide(page, "Opacity of the map", number, "map"),
        }
        for name, event in events.items():
            times[name] = [event(number) for number in range(args.rounds)]
            print(f"{name:32} median {statistics.median(times[name]):5.0f} ms, most {max(times[name]):5.0f} ms")
        until_shown(page, "seen", page.get_by_role("button", name="All").click)
        for number in range(3):
            click_patch(page, number)
        for name, width in (("wide", 1280), ("narrow", 390)):
            page.set_viewport_size({"width": width, "height": 1000})
            page.wait_for_timeout(500)  # what moves on the page has come to rest
            page.screenshot(path=Path(args.output_dir, f"{name}.png"), full_page=True)
    app.close()
    write_json(Path(args.output_dir, "results.json"), times)


if __name__ == "__main__":
    main()
