"""The app in a real browser: `app_server`, `browser`, `page`.

    def test_heatmap_is_drawn(app_server: AppServer, page: Page) -> None:
        page.goto(app_server.url)
        expect(page.get_by_role("heading", name="Interference")).to_be_visible()

A test that asks for `page` or `browser` carries the mark `browser` by itself.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",  # its sandbox does not start as root, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Without these it looks for its maker's servers, and tests would depend on the network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Path of the browser: AWD_CHROMIUM when set, else the first known name on PATH."""
    chosen = os.environ.get("AWD_CHROMIUM")
    names = (chosen,) if chosen else CHROMIUM_NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


NO_CHROMIUM = "no Chromium found: install chromium, or set AWD_CHROMIUM to its path"


@pytest.hookimpl(tryfirst=True)  # before -m decides which tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = find_chromium() is None and os.environ.get("AWD_REQUIRE_BROWSER") != "1"
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if skip and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


@dataclass(frozen=True)
class AppServer:
    """The running app: where it answers, its data folder (AWD_HOME) and its log."""

    url: str
    home: Path
    log: Path


@pytest.fixture(scope="session")
def app_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """The app, started once on a free port with an empty data folder of its own."""
    folder = tmp_path_factory.mktemp("app")
    home, log = folder / "home", folder / "streamlit.log"
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "dashboard/app.py"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--server.port={port}"],
            cwd=ROOT,
            env={**os.environ, "AWD_HOME": str(home)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, so that its children end with it
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, process, log)
        yield AppServer(url, home, log)
    finally:
        _end_group(process)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.1)
    what = "did not answer" if process.poll() is None else f"ended with {process.returncode}"
    pytest.fail(f"The app {what} within {START_SECONDS} s. Its log:\n{log.read_text()}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
        return


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the app's log beside the failure of a test that used the app."""
    report = yield
    server = getattr(item, "funcargs", {}).get("app_server")
    if report.failed and isinstance(server, AppServer):
        report.sections.append(("the app's log (end)", server.log.read_text()[-8000:]))
    return report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for the whole run, the one of this machine: none is ever downloaded."""
    path = find_chromium()
    if path is None:
        pytest.fail(f"AWD_REQUIRE_BROWSER=1, but {NO_CHROMIUM}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def browser_options() -> dict[str, Any]:
    """Options of the browser context; a test module overrides this for another size or theme."""
    return {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"}


@pytest.fixture
def page(browser: Browser, browser_options: dict[str, Any]) -> Iterator[Page]:
    """An empty page with nothing remembered from other tests."""
    context = browser.new_context(**browser_options)
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()
