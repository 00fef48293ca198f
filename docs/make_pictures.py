"""Makes docs/pictures from the running app: `python docs/make_pictures.py` from the root."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, Page

from tests.screens.server import open_browser, run_app

PICTURES = Path(__file__).parent / "pictures"
# Name, page, width, colour scheme, what has to be there.
SHOTS = (
    ("interference", "?granularity=row", 1440, "light", ".awd-matrices"),
    ("interference-dark", "?granularity=row", 1440, "dark", ".awd-matrices"),
    ("interference-narrow", "?granularity=row", 420, "light", ".awd-matrices"),
    ("tune", "tune?granularity=row", 1440, "light", "text=mean accuracy"),
    ("tune-narrow", "tune?granularity=row", 420, "light", "text=mean accuracy"),
    ("merge", "merge?granularity=tensor", 1440, "light", "text=What will be written"),
    ("try", "evaluate?granularity=row&confusion=true", 1440, "light", "text=share of the row"),
    ("compare", "compare", 1440, "light", "text=Accuracy on each task"),
    ("report", "report?granularity=row", 1440, "light", ".heatmaplayer"),
    ("report-dark", "report?granularity=row&alone=true", 1440, "dark", ".heatmaplayer"),
    ("open", "open", 1440, "light", "text=Or drop a .awdstudy file"),
)
SECONDS = 240
TALLEST = 3200


def shoot(
    browser: Browser,
    url: str,
    file: Path,
    width: int,
    scheme: str,
    ready: str,
    tallest: int = TALLEST,
) -> None:
    """One page in full height."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading", level=1).wait_for()
    if file.stem == "compare":
        _pin_two_settings(page)
    if file.stem == "open":
        _give_checkpoints(page)
    page.locator(ready).first.wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(6000)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(int(height) + 20, tallest)})
    page.wait_for_timeout(2500)
    page.screenshot(path=file)
    context.close()


def _pin_two_settings(page: Page) -> None:
    """AWD of the whole model as A, row by row as the present one."""
    page.get_by_role("button", name="Pin this setting").click()
    page.get_by_role("radio", name="row", exact=True).click()
    page.get_by_text("Where two settings differ").wait_for()


def _give_checkpoints(page: Page) -> None:
    """A base and two experts: the picture then shows what stands in the way and what it costs."""
    page.get_by_role("textbox", name="Base").fill("zoo:base")
    page.get_by_role("textbox", name="Experts, one a line").fill("zoo:library\nzoo:exception")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Collect").wait_for()


def main() -> None:
    """Start the app, visit every page."""
    PICTURES.mkdir(exist_ok=True)
    only = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory() as folder,
        run_app(Path(folder)) as server,
        open_browser() as browser,
    ):
        for name, path, width, scheme, ready in SHOTS:
            if not only or name in only:
                file = PICTURES / f"{name}.png"
                shoot(browser, f"{server.url}/{path}", file, width, scheme, ready)


if __name__ == "__main__":
    main()
