"""The app without a browser: its pages, and what is drawn on them as numbers."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from streamlit.testing.v1 import AppTest

import awd_core as awd
from analysis.view import View
from dashboard import jobs
from tests.helpers import family
from tests.html_tables import HtmlMatrix, read_matrices

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")
SECONDS = 600


def on(page: str) -> AppTest:
    """The app on one page, drawn once."""
    return AppTest.from_file(APP, default_timeout=SECONDS).switch_page(f"views/{page}.py").run()


def figure(test: AppTest, key: str) -> dict[str, Any]:
    """The figure drawn under this key."""
    charts = [chart.proto for chart in test.get("plotly_chart")]
    found = [proto for proto in charts if proto.id.endswith(f"-{key}")]
    assert found, f"no chart {key!r} among {[proto.id for proto in charts]}"
    return json.loads(found[0].spec)


def numbers(values: Any) -> np.ndarray:
    """An array of a figure, whether it was sent as base64 or as a list."""
    if not isinstance(values, dict):
        return np.array(values, dtype=float)
    array = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    shape = [int(size) for size in values["shape"].split(",")] if "shape" in values else [-1]
    return array.reshape(shape).astype(float)


def matrices(test: AppTest) -> list[HtmlMatrix]:
    """The matrices of cosines on the page: before and after AWD."""
    found = [read_matrices(html.proto.body) for html in test.get("html")]
    return [matrix for some in found for matrix in some]


def view(study: awd.Study, coefficient: float = 0.3, **settings: Any) -> View:
    solved = awd.disentangle(study, **settings)
    return View(study, solved, np.full(study.n_experts, coefficient))


def small_study(folder: Path, n_experts: int = 3) -> awd.Study:
    """A study of tiny models on disk."""
    made = family(folder / "models", n_experts=n_experts)
    experts = [awd.open_checkpoint(path) for path in made.expert_paths]
    return awd.collect(awd.open_checkpoint(made.base_path), experts, folder / "study")


def ended(test: AppTest) -> tuple[jobs.Job, jobs.Status]:
    """The job that the page watches, once it runs no more."""
    job = jobs.load(test.session_state["job"])
    assert job is not None
    deadline = time.monotonic() + 240
    while jobs.status(job).state == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    return job, jobs.status(job)


def done(test: AppTest) -> jobs.Job:
    """The same of one that ends well, and the page drawn with it."""
    job, status = ended(test)
    assert status.state == "done", status.message
    test.run()
    assert not test.exception
    return job


def press(test: AppTest, label: str) -> None:
    next(button for button in test.button if button.label == label).click().run()


START = {"granularity": "model", "alpha_relative": 0.1, "lr_relative": 0.01}


def overview_of(test: AppTest) -> pd.DataFrame:
    """The heatmap of the overview, as rows x blocks."""
    drawn = figure(test, "overview")["data"][0]
    return pd.DataFrame(numbers(drawn["z"]), index=drawn["y"], columns=drawn["x"])


def linked(**link: str | list[str]) -> AppTest:
    """The app as a pasted link opens it."""
    test = AppTest.from_file(APP, default_timeout=SECONDS)
    for name, value in link.items():
        test.query_params[name] = value
    return test.run()
