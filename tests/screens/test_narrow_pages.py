"""Figures on a page as narrow as a phone's: every name is there, and none lies over another."""

from typing import Any

import plotly.io
import pytest
from playwright.sync_api import Page

import awd_core as awd
from analysis.clustering import clusters, expert_tree
from tests.screens.pages import START, view

SHOWN = """texts => texts.filter(text => text.getBoundingClientRect().width)
  .map(text => text.textContent)"""


@pytest.fixture
def browser_options() -> dict[str, Any]:
    return {"viewport": {"width": 430, "height": 900}, "color_scheme": "light"}


def test_every_expert_has_its_name_below_the_tree(study: awd.Study, page: Page) -> None:
    found = clusters(view(study, **START))
    page.set_content(plotly.io.to_html(expert_tree(found), full_html=False))
    page.locator(".xtick text").first.wait_for()
    names = page.locator(".xtick text").evaluate_all(SHOWN)
    assert tuple(names) == found.ordered
