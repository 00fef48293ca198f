"""From slider release to the redrawn heatmap, in real Chromium.

    python -m benchmarks.dashboard_latency [--changes 50]

A slider is moved by the keyboard (arrow key down to key up is the release), and the time runs until
Plotly has drawn a figure with new data (its `plotly_afterplot` event on the heatmap). Prints p50
and p95 for the norm constraint (AWD is solved anew) at every granularity and for the coefficient.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from tests.screens.server import open_browser, run_app

# Notes the moment of the last key down, and of the first figure with other data after it.
WATCH = """
() => {
  window.awd = {pressed: 0, drawn: 0, before: ''};
  const data = () => [...document.querySelectorAll('.js-plotly-plot')]
      .map(p => (p.data || []).filter(t => t.type === 'heatmap').map(
          t => JSON.stringify(t.z && (t.z.bdata || t.z)) + t.zmin).join()).join('|');
  document.addEventListener('keydown', e => {
    window.awd = {pressed: performance.now(), drawn: 0, before: data()};
  }, true);
  const look = () => {
    if (window.awd.pressed && !window.awd.drawn && data() !== window.awd.before)
      window.awd.drawn = performance.now();
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}
"""


def changes(page: Page, slider: str, n: int) -> np.ndarray:
    """Milliseconds from release to redraw for `n` moves of a slider, up and down in turn."""
    handle = page.get_by_role("slider", name=slider)
    handle.focus()
    times = []
    for step in range(n + 2):
        # Twice down, twice up: every move lands on another value than the one before.
        page.keyboard.press("ArrowLeft" if step % 4 < 2 else "ArrowRight")
        page.wait_for_function("window.awd.drawn > 0", timeout=30_000)
        times.append(page.evaluate("window.awd.drawn - window.awd.pressed"))
        page.wait_for_timeout(150)
    return np.array(times[2:])


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
        page.wait_for_selector(".js-plotly-plot .heatmaplayer", timeout=120_000)
        first = time.perf_counter() - start
        start = time.perf_counter()
        page.reload()
        page.wait_for_selector(".js-plotly-plot .heatmaplayer", timeout=60_000)
        print(f"first heatmap: {first:.1f} s cold, {time.perf_counter() - start:.1f} s warm\n")
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
        print("| slider | granularity | p50 ms | p95 ms |\n|---|---|---|---|")
        for granularity in ("model", "block", "tensor", "row"):
            page.get_by_role("radio", name=granularity, exact=True).click()
            page.wait_for_timeout(4000)
            times = changes(page, "Norm constraint α", arguments.changes)
            p50, p95 = np.percentile(times, [50, 95])
            print(f"| norm constraint α | {granularity} | {p50:.0f} | {p95:.0f} |", flush=True)


if __name__ == "__main__":
    main()
