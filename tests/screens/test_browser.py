"""The whole way in a real browser: look, tune, export, verify; click a cell; paste a link."""

import re
import shutil
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

import awd_core as awd
from analysis.exhibits import EXHIBITS
from awd_core import archive
from dashboard import studies
from tests.helpers import family
from tests.screens.conftest import AppServer

pytestmark = pytest.mark.browser
SOON = 120_000
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"


def visit(page: Page, server: AppServer, path: str = "") -> None:
    page.goto(f"{server.url}/{path}")
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=SOON)


def test_zoo_to_tuned_to_exported_to_verified(app_server: AppServer, page: Page) -> None:
    visit(page, app_server)
    expect(page.locator(".heatmaplayer").first).to_be_visible(timeout=SOON)
    after = page.get_by_role("table", name="after AWD")
    before = after.inner_text()
    page.get_by_role("slider", name="Norm constraint α").focus()
    page.keyboard.press("ArrowLeft")
    expect(after).not_to_have_text(before, use_inner_text=True, timeout=SOON)
    page.get_by_role("link", name="Merge").click()
    expect(page.get_by_role("heading", name="Write the merge")).to_be_visible(timeout=SOON)
    expect(page.get_by_text("alpha_relative: 0.05").first).to_be_visible(timeout=SOON)
    page.get_by_role("button", name="Export").click()
    expect(page.get_by_text("Export is done").first).to_be_visible(timeout=SOON)
    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_text("Verification is done").first).to_be_visible(timeout=SOON)
    written = list((app_server.home / "merged").iterdir())
    assert len(written) == 1
    assert (written[0] / "provenance.json").exists()


# Keeps what the matrices showed, one after the other.
NOTE_MATRICES = """() => {
  window.shown = [];
  const note = () => {
    const now = document.querySelector('.awd-matrices')?.innerHTML;
    if (now && now !== window.shown.at(-1)) window.shown.push(now);
  };
  note();
  new MutationObserver(note).observe(document.body, {subtree: true, childList: true});
}"""


# The far end of each slider turns AWD off.
@pytest.mark.parametrize(
    ("units", "key"), [("× α_crit", "End"), ("paper's units", "End"), ("bound r", "Home")]
)
@pytest.mark.parametrize("path", ["", "tune"])
def test_the_matrices_that_a_slider_draws_first_are_those_that_stay(
    app_server: AppServer, page: Page, path: str, units: str, key: str
) -> None:
    visit(page, app_server, f"{path}?granularity=block&{urlencode({'alpha_units': units})}")
    expect(page.locator(".awd-matrices").first).to_be_visible(timeout=SOON)
    page.locator(IDLE).wait_for(timeout=SOON)
    page.evaluate(NOTE_MATRICES)
    page.get_by_role("slider", name=re.compile("^Norm ")).focus()
    page.keyboard.press(key)
    expect(page.get_by_text("2 settings so far")).to_be_attached(timeout=SOON)
    page.locator(IDLE).wait_for(timeout=SOON)
    assert page.evaluate("window.shown.length") == 2


def test_accuracy_comes_by_itself_after_a_slider_was_moved(
    app_server: AppServer, page: Page
) -> None:
    visit(page, app_server, "tune?granularity=row")
    answer = page.get_by_text(re.compile(r"mean accuracy: base \d"))
    expect(answer).to_be_visible(timeout=4 * SOON)
    page.get_by_role("slider", name="Coefficient λ").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("evaluating this setting")).to_be_visible(timeout=SOON)
    expect(answer).to_be_visible(timeout=SOON)
    expect(page.get_by_text("last setting").first).to_be_visible(timeout=SOON)


def test_a_click_on_a_cell_chooses_its_block(app_server: AppServer, page: Page) -> None:
    visit(page, app_server)
    cells = page.locator(".js-plotly-plot").first
    expect(cells.locator(".heatmaplayer").first).to_be_visible(timeout=SOON)
    place = cells.evaluate(
        """plot => {
          const trace = plot._fullData[1], x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
          const i = trace.x.findIndex(name => name === 'block 1');
          const box = plot.getBoundingClientRect();
          return [box.left + x._offset + x.r2p(trace.x[i]),
                  box.top + y._offset + y.r2p(trace.y[i])];
        }"""
    )
    page.mouse.click(*place)
    expect(page.get_by_text("Tensors of block 1").first).to_be_visible(timeout=SOON)


def test_a_ticked_tensor_goes_with_its_block(app_server: AppServer, page: Page) -> None:
    page.set_default_timeout(SOON)
    visit(page, app_server, "?block=block+2")
    back = page.get_by_role("button", name=re.compile("^(.* )?All of block"))
    tick_second_tensor(page)
    expect(back).to_be_visible(timeout=SOON)
    assert "tensor=" in page.url
    linked = page.url
    page.locator("input[aria-label=Block]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Tensors of block 3")).to_be_visible(timeout=SOON)
    expect(back).to_be_hidden(timeout=SOON)
    expect(page).not_to_have_url(re.compile("tensor="), timeout=SOON)
    tick_second_tensor(page)  # were it ticked still, this would take the tick away
    expect(back).to_have_text(re.compile("All of block 3"), timeout=SOON)
    page.goto(linked)
    back.click()
    expect(back).to_be_hidden(timeout=SOON)
    expect(page).not_to_have_url(re.compile("tensor="), timeout=SOON)
    tick_second_tensor(page)
    expect(back).to_be_visible(timeout=SOON)
    assert page.url == linked


def tick_second_tensor(page: Page) -> None:
    page.locator(IDLE).wait_for(timeout=SOON)
    table = page.locator(".st-key-tensors canvas").first
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # the table moves while charts above it are drawn
    box = table.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 15, box["y"] + 35 + 1.5 * 35)  # a header and rows of 35 pixels


def test_the_numbers_choose_a_block_by_keyboard(app_server: AppServer, page: Page) -> None:
    visit(page, app_server)
    page.get_by_text("The numbers, and what they are").click(timeout=SOON)
    table = page.get_by_test_id("stDataFrame").first.locator("canvas").first
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 52)  # a cell of the first row
    heading = page.get_by_role("heading", name=re.compile("^Tensors of"))
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.wait_for_timeout(2000)
        before = heading.inner_text()
        page.keyboard.press(key)
        expect(heading).not_to_have_text(before, timeout=SOON)


def test_a_pasted_link_reopens_the_setting(app_server: AppServer, page: Page) -> None:
    visit(page, app_server, "merge?granularity=tensor&lambda=0.5")
    expect(page.get_by_text("granularity: tensor").first).to_be_visible(timeout=SOON)
    expect(page.get_by_text("coefficient: 0.5").first).to_be_visible(timeout=SOON)


def test_the_address_of_a_view_opens_it_again(
    app_server: AppServer, browser: Browser, page: Page
) -> None:
    visit(page, app_server)
    page.get_by_role("slider", name="Norm constraint α").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("alpha="), timeout=SOON)
    page.get_by_role("radio", name="tensor", exact=True).click()
    page.wait_for_url(re.compile("granularity=tensor"), timeout=SOON)
    page.get_by_role("radio", name="Who needs which weights").click()
    page.wait_for_url(re.compile("close_up="), timeout=SOON)
    expect(page.get_by_text("λ of the masks").first).to_be_visible(timeout=SOON)
    after = page.get_by_role("table", name="after AWD").inner_text()
    context = browser.new_context()
    again = context.new_page()
    again.goto(page.url)
    expect(again.get_by_text("λ of the masks").first).to_be_visible(timeout=SOON)
    expect(again.get_by_role("table", name="after AWD")).to_have_text(after, use_inner_text=True)
    expect(again.get_by_role("radio", name="tensor", exact=True)).to_be_checked()
    context.close()


def test_arrow_keys_turn_the_slides(app_server: AppServer, page: Page) -> None:
    titles = [one.title for one in EXHIBITS]
    visit(page, app_server, "report")
    slide = page.get_by_role("heading", level=1)
    expect(slide).to_have_text(titles[0], timeout=SOON)
    page.get_by_role("button", name="Slide alone").click(timeout=SOON)
    expect(page.get_by_test_id("stSidebar")).to_be_hidden(timeout=SOON)
    previous = page.get_by_role("button", name="Previous")
    expect(previous).to_be_disabled()
    for key, number in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(slide).to_have_text(titles[number], timeout=SOON)
        # The slide is drawn after the buttons that listen to keys; before the first there is none.
        expect(previous).to_be_enabled(enabled=number > 0, timeout=SOON)
    page.locator(IDLE).wait_for(timeout=SOON)
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(1500)
    expect(slide).to_have_text(titles[0])


def test_a_link_opens_a_slide_alone(app_server: AppServer, page: Page) -> None:
    visit(page, app_server, "report?alone=true")
    # A button listens to keys from when it is there: its code is fetched after the page's.
    page.get_by_role("button", name="Next").wait_for(timeout=SOON)
    expect(page.get_by_test_id("stSidebar")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text(EXHIBITS[1].title, timeout=SOON)
    page.get_by_role("button", name="Whole page").click()
    expect(page.get_by_test_id("stSidebar")).to_be_visible(timeout=SOON)


@pytest.mark.parametrize(
    ("close_up", "slider"),
    [
        ("Agreement on signs", "Largest entries that count"),
        ("Who needs which weights", "λ of the masks"),
    ],
)
def test_the_address_holds_block_kind_close_up_and_lambda_by_block(
    app_server: AppServer, browser: Browser, page: Page, close_up: str, slider: str
) -> None:
    page.set_default_timeout(SOON)
    visit(page, app_server)
    page.get_by_text("λ by block").click()
    factors = page.get_by_role("textbox", name="Factors")
    factors.fill("block 1=0.5; block 3=2")
    factors.press("Enter")
    page.wait_for_url(re.compile("block_factors="), timeout=SOON)
    page.locator("input[aria-label=Block]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("[?&]block="), timeout=SOON)
    page.get_by_role("combobox", name="Kind of tensor").click()
    page.get_by_role("option").nth(1).click()
    page.wait_for_url(re.compile("[?&]kind="), timeout=SOON)
    page.get_by_role("radio", name=close_up).click()
    page.get_by_role("slider", name=slider).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("density=|mask_share="), timeout=SOON)
    page.locator(IDLE).wait_for(timeout=SOON)
    context = browser.new_context()
    again = context.new_page()
    again.set_default_timeout(SOON)
    again.goto(page.url)
    expect(again.get_by_role("slider", name=slider)).to_be_visible(timeout=SOON)
    for name in (slider, "Block"):
        thumb = f"input[aria-label='{name}']"
        chosen = page.locator(thumb).get_attribute("aria-valuetext")
        expect(again.locator(thumb)).to_have_attribute("aria-valuetext", chosen or "", timeout=SOON)
    expect(again.get_by_role("radio", name=close_up)).to_be_checked()
    part = page.get_by_role("heading", name=re.compile("^Tensors of")).inner_text()
    assert ", " in part  # of one kind
    expect(again.get_by_role("heading", name=re.compile("^Tensors of"))).to_have_text(part)
    again.get_by_text("λ by block").click()
    expect(again.get_by_role("textbox", name="Factors")).to_have_value("block 1=0.5; block 3=2")
    context.close()


def test_a_cancelled_export_leaves_nothing(
    app_server: AppServer, page: Page, tmp_path: Path
) -> None:
    visit(page, app_server, "merge")
    target = tmp_path / "cancelled"
    page.get_by_role("textbox", name="Output folder").fill(str(target))
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="Cancel").click(timeout=SOON)
    expect(page.get_by_text(re.compile("was cancelled"))).to_be_visible(timeout=SOON)
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_study_opens_without_its_weights(
    app_server: AppServer, page: Page, tmp_path: Path
) -> None:
    made = family(tmp_path / "models", n_experts=3)
    experts = [awd.open_checkpoint(path) for path in made.expert_paths]
    study = awd.collect(awd.open_checkpoint(made.base_path), experts, tmp_path / "study")
    file = archive.export_study(study, tmp_path / "x.awdstudy")
    shutil.rmtree(tmp_path / "models")
    visit(page, app_server, "open?granularity=row")
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Look at this study").click(timeout=SOON)
    expect(page.get_by_text("3 experts").first).to_be_visible(timeout=SOON)
    expect(page.locator(".heatmaplayer").first).to_be_visible(timeout=SOON)
    assert studies.fingerprint(study) in page.url
    row = page.get_by_role("radio", name="row", exact=True)
    expect(row).to_be_checked()
    assert "granularity=row" in page.url


def test_a_link_to_a_study_that_is_not_here_says_so(app_server: AppServer, page: Page) -> None:
    page.goto(f"{app_server.url}/?study={'0' * 16}")
    expect(page.get_by_text("not on this machine").first).to_be_visible(timeout=SOON)
    page.get_by_role("link", name="Open another study").click()
    expect(page.get_by_role("heading", name="Open other models")).to_be_visible(timeout=SOON)


def test_a_link_asking_in_vain_says_so_and_stays_a_page(app_server: AppServer, page: Page) -> None:
    visit(page, app_server, "tune?method=nope&block_factors=garbage")
    page.locator(IDLE).wait_for(timeout=SOON)
    expect(page.get_by_text("The link asks for what is not offered")).to_be_visible(timeout=SOON)
    expect(page.get_by_role("textbox", name="Factors")).to_be_visible(timeout=SOON)
    expect(page.get_by_text("The factors of λ by block cannot be read")).to_be_visible()
    expect(page.get_by_text("This cannot be shown")).to_have_count(0)


def test_dark_pages_have_dark_figures(app_server: AppServer, browser: Browser) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    visit(page, app_server)
    expect(page.locator(".heatmaplayer").first).to_be_visible(timeout=SOON)
    colour = page.evaluate(
        "document.querySelector('.js-plotly-plot')._fullLayout.font.color.toLowerCase()"
    )
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    assert min(red, green, blue) > 128
    context.close()
