"""The report, opened from disk with the network off."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from analysis.report import write_report
from tests.analysis_studies import collected, random_vectors


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    return write_report(collected(folder, random_vectors(3, seed=2)), folder / "review.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_a_network(browser: Browser, review: Path, scheme: str) -> None:
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    context.set_offline(True)
    context.set_default_timeout(60_000)
    page = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(review.as_uri())
    drawn = page.locator(".figure").count()
    assert drawn >= 4
    expect(page.locator(".figure:has(.main-svg)")).to_have_count(drawn, timeout=60_000)
    assert page.locator(f".only-{scheme} table").first.is_visible()
    other = "light" if scheme == "dark" else "dark"
    assert not page.locator(f".only-{other} table").first.is_visible()
    assert page.get_by_role("heading", name="Findings").is_visible()
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    page.emulate_media(media="print", color_scheme="light")
    assert page.locator(".only-light table").first.is_visible()
    context.close()
