"""The zoo's `study`, and the app in a real browser: `app_server`, `browser`, `page`.

    def test_heatmap_is_drawn(app_server: AppServer, page: Page) -> None:
        page.goto(app_server.url)
        expect(page.get_by_role("heading", name="Interference")).to_be_visible()

A test that asks for `page` or `browser` carries the mark `browser` by itself.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import awd_core as awd
from awd_core import zoo
from dashboard import latency
from tests.screens.server import NO_CHROMIUM, AppServer, find_chromium, open_browser, run_app


@pytest.hookimpl(tryfirst=True)  # before -m decides which tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = find_chromium() is None and os.environ.get("AWD_REQUIRE_BROWSER") != "1"
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if skip and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


@pytest.fixture(autouse=True)
def no_browser_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where pages are drawn without one; `app_server` is another."""
    for name in ("SECONDS_TO_PAINT", "SECONDS_TO_LOAD"):
        monkeypatch.setattr(latency, name, 0.0)


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder whose files the pages may open."""
    monkeypatch.setenv("AWD_ROOTS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def study(awd_home: Path) -> awd.Study:
    """The zoo's, as the app opens it."""
    experts = [awd.open_checkpoint(f"zoo:{key}") for key in zoo.TASK_KEYS]
    return awd.collect_spectra(awd.collect(awd.open_checkpoint("zoo:base"), experts))


@pytest.fixture(scope="session")
def app_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """The app, started once."""
    with run_app(tmp_path_factory.mktemp("app")) as server:
        yield server


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
    """One Chromium for the whole run."""
    with open_browser() as chromium:
        yield chromium


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
