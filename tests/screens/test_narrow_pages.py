"""Figures on a page as narrow as a phone's: every name is there, and none lies over another."""

from itertools import combinations
from typing import Any

import plotly.io
import pytest
from playwright.sync_api import Page

import awd_core as awd
from analysis.clustering import clusters, expert_tree
from tests.screens.pages import START, view
from tests.screens.server import AppServer

SHOWN = """texts => texts.filter(text => text.getBoundingClientRect().width)
  .map(text => text.textContent)"""

# left, top, right, bottom
BOXES = """titles => titles.map(title => title.getBoundingClientRect()).map(
  box => [box.left, box.top, box.right, box.bottom])"""


@pytest.fixture
def browser_options() -> dict[str, Any]:
    return {"viewport": {"width": 430, "height": 900}, "color_scheme": "light"}


def test_every_expert_has_its_name_below_the_tree(study: awd.Study, page: Page) -> None:
    found = clusters(view(study, **START))
    page.set_content(plotly.io.to_html(expert_tree(found), full_html=False))
    page.locator(".xtick text").first.wait_for()
    names = page.locator(".xtick text").evaluate_all(SHOWN)
    assert tuple(names) == found.ordered


def test_titles_of_axes_over_alpha_do_not_lie_over_one_another(
    app_server: AppServer, page: Page
) -> None:
    page.goto(f"{app_server.url}/tune")
    charts = page.locator("[class*='st-key-alpha_path_']")
    charts.nth(2).locator(".ytitle").wait_for(timeout=60_000)
    assert charts.count() == 3
    boxes = charts.locator(".xtitle, .ytitle").evaluate_all(BOXES)
    assert len(boxes) == 6
    for one, other in combinations(boxes, 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        assert beside or one[3] <= other[1] or other[3] <= one[1]
