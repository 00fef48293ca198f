"""From slider release to the redrawn heatmap, in real Chromium.

    python -m benchmarks.dashboard_latency [--changes 50] [--rounds 6]

On the zoo and on a synthetic study of 300 tensors and eight experts; then every page's load and
what it sends; then ten users at once, each with sliders of their own.

The slider of the norm constraint is dragged with the mouse, to and fro, a second between drags. The
time runs from the release of the button until the matrices of cosines hold other numbers in the
DOM, and until the frame with them has been painted. The last line drags to values that nobody has
asked for yet; what the next drag may ask for is solved while a user looks.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import torch
from playwright.sync_api import Browser, Page
from safetensors.torch import save_file

import awd_core as awd
from analysis import tables
from analysis.view import View
from tests.screens.server import open_browser, run_app

USERS = 10
# The tensors of one block of the synthetic study, and the sides of each.
PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm.extra",
    "post_attention_layernorm.extra",
    "mlp.extra",
)
SIZE = 64
# Every page, and what it is for.
PAGES = {
    "": ".awd-matrices",
    "tune": ".awd-matrices",
    "merge": "[data-testid=stCode]",
    "evaluate": "[data-testid=stFileUploader]",
    "compare": "[data-testid=stAlert]",
    "report": ".heatmaplayer",
    "open": "[data-testid=stFileUploader]",
}
# Pixels of one drag: one to two positions of the slider.
STRIDE = 26
# One to two positions of the slider in the paper's units, which has twice as many.
SHORT_STRIDE = 12
MILLISECONDS_TO_LOOK = 1000
SINCE_RELEASE = "[window.awd.changed, window.awd.drawn].map(time => time - window.awd.released)"
# Notes the last release, when the matrices of cosines changed in the DOM after it, and when the
# frame with them was painted: a message posted in a frame's callback arrives after its paint.
WATCH = """
() => {
  window.awd = {released: 0, changed: 0, drawn: 0};
  let before = '';
  document.addEventListener('pointerdown', () => {
    window.awd = {released: 0, changed: 0, drawn: 0};
    before = matrices();
  }, true);
  document.addEventListener('pointerup', () => { window.awd.released = performance.now(); }, true);
  const painted = new MessageChannel();
  painted.port1.onmessage = () => { window.awd.drawn = performance.now(); };
  const matrices = () => document.querySelector('.awd-matrices')?.innerHTML;
  const look = () => {
    const mine = window.awd;
    if (!mine.released || mine.changed) return;
    const now = matrices();
    if (now && now !== before) {
      mine.changed = performance.now();
      requestAnimationFrame(() => painted.port2.postMessage(null));
    }
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
}
"""


def changes(page: Page, slider: str, strides: Sequence[int]) -> np.ndarray:
    """Milliseconds from release to changed and to painted matrices, (drags, 2).

    Args:
        page: With `WATCH`.
        slider: Its name.
        strides: Pixels of every drag.
    """
    times = []
    for stride in strides:
        # The input is hidden; the box around it moves with the thumb.
        x, y = page.get_by_role("slider", name=slider).evaluate(
            "e => { const box = e.parentElement.getBoundingClientRect(); return [box.x, box.y]; }"
        )
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + stride, y, steps=3)
        page.mouse.up()
        page.wait_for_function("window.awd.drawn > 0", timeout=30_000)
        times.append(page.evaluate(SINCE_RELEASE))
        page.wait_for_timeout(MILLISECONDS_TO_LOOK)
    return np.array(times)


class Traffic:
    """Bytes that a page has received, over HTTP and over its web socket."""

    def __init__(self, page: Page) -> None:
        self.http = self.socket = 0
        session = page.context.new_cdp_session(page)
        session.on("Network.dataReceived", self._data)
        session.on("Network.webSocketFrameReceived", self._frame)
        session.send("Network.enable")

    def _data(self, event: dict[str, Any]) -> None:
        self.http += event["encodedDataLength"]

    def _frame(self, event: dict[str, Any]) -> None:
        # Binary frames are handed over as base64.
        self.socket += len(event["response"]["payloadData"]) * 3 // 4


def make_study(home: Path) -> str:
    """A study of real files: 30 blocks of 10 tensors, 8 experts; returns what a link calls it."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{block}.{part}.weight" for block in range(30) for part in PARTS]
    base = {name: torch.randn(SIZE, SIZE, generator=generator) for name in names}
    shared = {name: torch.randn(SIZE, SIZE, generator=generator) for name in names}
    folders = [home / "models" / name for name in ("base", *(f"expert-{k}" for k in range(8)))]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        state = base
        if number:
            state = {
                name: weights
                + 0.01 * (0.3 * shared[name] + torch.randn(SIZE, SIZE, generator=generator))
                for name, weights in base.items()
            }
        save_file(state, folder / "model.safetensors")
    experts = [awd.open_checkpoint(folder) for folder in folders[1:]]
    study = awd.collect(awd.open_checkpoint(folders[0]), experts, home / "studies" / "synthetic")
    assert len(study.tensors) == 300
    return study.digest[:16]


def load(browser: Browser, url: str, ready: str) -> tuple[float, Traffic]:
    """Seconds from the address to what the page is for, and what came over the line."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    traffic = Traffic(page)
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(ready, timeout=120_000)
    seconds = time.perf_counter() - start
    page.wait_for_timeout(3000)
    page.close()
    return seconds, traffic


def users(browser: Browser, url: str, study: awd.Study, rounds: int) -> tuple[np.ndarray, int]:
    """Ten users, each at another granularity and alpha, all move their slider in every round.

    Returns:
        Milliseconds from release to DOM and to paint of every change, and how many of the ten
        show the numbers of their own setting at the end.
    """
    settings = [
        (granularity, alpha)
        for granularity in ("model", "block", "tensor")
        for alpha in ("0.01 α_crit", "0.05 α_crit", "0.1 α_crit", "0.3 α_crit")
    ][:USERS]
    pages = []
    for granularity, alpha in settings:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{url}&{urlencode({'granularity': granularity, 'alpha': alpha})}")
        pages.append(page)
    for page in pages:
        page.wait_for_selector(".awd-matrices", timeout=120_000)
    pages[-1].wait_for_timeout(5000)
    times = []
    for page in pages:
        page.evaluate(WATCH)
    for turn in range(rounds):
        for page in pages:
            x, y = page.get_by_role("slider", name="Norm constraint α").evaluate(
                "e => { const box = e.parentElement.getBoundingClientRect();"
                " return [box.x, box.y]; }"
            )
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + (STRIDE if turn % 2 else -STRIDE), y, steps=2)
            page.mouse.up()
        for page in pages:
            page.wait_for_function("window.awd.drawn > 0", timeout=60_000)
            times.append(page.evaluate(SINCE_RELEASE))
        pages[0].wait_for_timeout(1500)
    right = sum(_shows_its_own(page, study) for page in pages)
    for page in pages:
        page.close()
    return np.array(times), right


def _shows_its_own(page: Page, study: awd.Study) -> bool:
    """Whether the matrix after AWD is that of the setting in the address."""
    link = {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}
    alpha = link.get("alpha", "0.1 α_crit").replace(" α_crit", "").replace("α_crit", "1")
    settings = awd.Settings.model_validate(
        {
            "granularity": link.get("granularity", "model"),
            "alpha_relative": float(alpha),
            "lr_relative": 0.01,
        }
    )
    solved = awd.solve(study, settings)
    view = View(study, solved, np.full(study.n_experts, 0.3))
    block = page.get_by_text(re.compile("every two experts in")).first.inner_text().split(" in ")[1]
    expected = tables.matrix(view, "block", block, "after").to_numpy()
    shown = (
        page.get_by_role("table", name="after AWD")
        .locator("data")
        .evaluate_all("cells => cells.map(cell => Number(cell.value))")
    )
    off = ~np.eye(study.n_experts, dtype=bool)
    return len(shown) == off.sum() and bool(np.allclose(shown, expected[off], atol=1e-7))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        run_app(Path(folder)) as server,
        open_browser() as browser,
    ):
        synthetic = make_study(server.home)
        study = awd.open_study(server.home / "studies" / "synthetic")
        cold, _ = load(browser, server.url, ".awd-matrices")
        warm, _ = load(browser, server.url, ".awd-matrices")
        print(f"first heatmap of the zoo: {cold:.1f} s cold, {warm:.1f} s warm\n")
        _page_loads(browser, server.url)
        # Twice left, twice right: every drag ends on another value than the one before.
        to_and_fro = [-STRIDE, -STRIDE, STRIDE, STRIDE] * (arguments.changes // 4 + 1)
        print(
            "| study | granularity | DOM p50 ms | p95 | painted p50 ms | p95 | kB over the socket |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, link in (("zoo", "zoo"), ("300 tensors, 8 experts", synthetic)):
            _drags(browser, f"{server.url}?study={link}", name, to_and_fro)
        times, right = users(browser, f"{server.url}?study={synthetic}", study, arguments.rounds)
        print(
            f"\n{USERS} users at once on the 300 tensors, browsers and server on one machine,"
            f" DOM p50 and p95, painted p50 and p95 in ms: {_percentiles(times[USERS:])};"
            f" {right} of {USERS} show the numbers of their own sliders."
        )


def _page_loads(browser: Browser, url: str) -> None:
    print("| page | s until drawn, warm | kB over HTTP | kB over the socket |\n|---|---|---|---|")
    for path, ready in PAGES.items():
        seconds, traffic = load(browser, f"{url}/{path}", ready)
        name = path or "interference"
        print(
            f"| {name} | {seconds:.1f} | {traffic.http / 1e3:,.0f} | {traffic.socket / 1e3:,.0f} |",
            flush=True,
        )
    print()


def _drags(browser: Browser, url: str, name: str, strides: Sequence[int]) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    traffic = Traffic(page)
    page.goto(url)
    page.wait_for_selector(".awd-matrices", timeout=120_000)
    page.wait_for_timeout(3000)
    page.evaluate(WATCH)
    for granularity in ("model", "block", "tensor", "row"):
        page.get_by_role("radio", name=granularity, exact=True).click()
        page.wait_for_timeout(4000)
        before = traffic.socket
        times = changes(page, "Norm constraint α", strides)
        _report(name, granularity, times, (traffic.socket - before) / len(times))
    page.get_by_role("radio", name="paper's units").click()
    page.wait_for_timeout(4000)
    before = traffic.socket
    times = changes(page, "Norm constraint α", [-SHORT_STRIDE] * 9)
    _report(name, "row, every value new", times, (traffic.socket - before) / len(times))
    page.close()


def _report(name: str, granularity: str, times: np.ndarray, n_bytes: float) -> None:
    print(
        f"| {name} | {granularity} | {_percentiles(times[2:])} | {n_bytes / 1e3:.0f} |", flush=True
    )


def _percentiles(times: np.ndarray) -> str:
    """p50 and p95 of the DOM, then of the paint."""
    return " | ".join(f"{one:.0f}" for one in np.percentile(times, [50, 95], axis=0).T.ravel())


if __name__ == "__main__":
    main()
