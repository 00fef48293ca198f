"""The running app and a browser to drive it: for tests, benchmarks and the pictures of the docs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",  # its sandbox does not start as root, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Without these it looks for its maker's servers, and runs would depend on the network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_CHROMIUM = "no Chromium found: install chromium, or set AWD_CHROMIUM to its path"


def find_chromium() -> str | None:
    """Path of the browser: AWD_CHROMIUM when set, else the first known name on PATH."""
    chosen = os.environ.get("AWD_CHROMIUM")
    names = (chosen,) if chosen else CHROMIUM_NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The Chromium of this machine: none is ever downloaded."""
    path = find_chromium()
    if path is None:
        raise RuntimeError(NO_CHROMIUM)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class AppServer:
    """The running app: where it answers, its data folder (AWD_HOME) and its log."""

    url: str
    home: Path
    log: Path


@contextmanager
def run_app(folder: Path) -> Iterator[AppServer]:
    """The app on a free port, with an empty data folder and its log under `folder`."""
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
            env={**os.environ, "AWD_HOME": str(home), "AWD_ROOTS": str(folder.resolve().parent)},
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
    raise RuntimeError(f"The app {what} within {START_SECONDS} s. Its log:\n{log.read_text()}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
