"""From slider release to the redrawn heatmap, in real Chromium.

    python -m benchmarks.dashboard_latency [--changes 50]

The slider of the norm constraint is dragged with the mouse, to and fro. The time runs from the
release of the button until the frame in which the matrices of cosines hold other numbers has been
painted. Solutions are kept, so most drags find theirs; the last line drags to values that nobody
has asked for yet, and solves every row each time.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from tests.screens.server import open_browser, run_app

# Pixels of one drag: one to two positions of the slider.
STRIDE = 26
# One to two positions of the slider in the paper's units, which has twice as many.
SHORT_STRIDE = 12
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
    """Milliseconds from release to painted matrices for drags of a slider by so many pixels."""
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
        times.append(page.evaluate("window.awd.drawn - window.awd.released"))
        page.wait_for_timeout(200)
    return np.array(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=50)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        run_app(Path(folder)) as server,
        open_browser() as browser,
    ):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        page.goto(server.url)
        page.wait_for_selector(".awd-matrices", timeout=120_000)
        first = time.perf_counter() - start
        start = time.perf_counter()
        page.reload()
        page.wait_for_selector(".awd-matrices", timeout=60_000)
        print(f"first heatmap: {first:.1f} s cold, {time.perf_counter() - start:.1f} s warm\n")
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
        print("| slider | granularity | p50 ms | p95 ms |\n|---|---|---|---|")
        # Twice left, twice right: every drag ends on another value than the one before.
        to_and_fro = [-STRIDE, -STRIDE, STRIDE, STRIDE] * (arguments.changes // 4 + 1)
        for granularity in ("model", "block", "tensor", "row"):
            page.get_by_role("radio", name=granularity, exact=True).click()
            page.wait_for_timeout(4000)
            _report(granularity, changes(page, "Norm constraint α", to_and_fro))
        page.get_by_role("radio", name="paper's units").click()
        page.wait_for_timeout(4000)
        _report("row, every value new", changes(page, "Norm constraint α", [-SHORT_STRIDE] * 9))


def _report(name: str, times: np.ndarray) -> None:
    p50, p95 = np.percentile(times[2:], [50, 95])
    print(f"| norm constraint α | {name} | {p50:.0f} | {p95:.0f} |", flush=True)


if __name__ == "__main__":
    main()
