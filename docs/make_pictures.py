"""Makes docs/pictures from the running app: `python docs/make_pictures.py` from the root."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser

from tests.screens.server import open_browser, run_app

PICTURES = Path(__file__).parent / "pictures"
# Name, page, width, colour scheme.
SHOTS = (
    ("interference", "?granularity=row", 1440, "light"),
    ("interference-dark", "?granularity=row", 1440, "dark"),
    ("interference-narrow", "?granularity=row", 420, "light"),
    ("tune", "tune?granularity=row", 1440, "light"),
    ("merge", "merge?granularity=row", 1440, "light"),
    ("open", "open", 1440, "light"),
)


def shoot(browser: Browser, url: str, name: str, width: int, scheme: str) -> None:
    """One page in full height."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading", level=1).wait_for(timeout=120_000)
    if "tune" in name:
        page.get_by_text("mean accuracy").wait_for(timeout=120_000)
    page.wait_for_timeout(4000)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(int(height) + 20, 3200)})
    page.wait_for_timeout(1500)
    page.screenshot(path=PICTURES / f"{name}.png")
    context.close()


def main() -> None:
    """Start the app, visit every page."""
    PICTURES.mkdir(exist_ok=True)
    only = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory() as folder,
        run_app(Path(folder)) as server,
        open_browser() as browser,
    ):
        for name, path, width, scheme in SHOTS:
            if not only or name in only:
                shoot(browser, f"{server.url}/{path}", name, width, scheme)


if __name__ == "__main__":
    main()
