"""The table of all methods on page Compare."""

import csv
from pathlib import Path

import awd_core as awd
from dashboard import leaderboard
from tests.screens.pages import on

FILE = Path(leaderboard.__file__).with_suffix(".csv")


def test_compare_shows_what_the_benchmark_wrote() -> None:
    test = on("compare")
    assert not test.exception
    with FILE.open(encoding="utf-8") as stream:
        assert stream.readline().startswith("# python -m benchmarks.methods_on_zoo")
        written = list(csv.DictReader(stream))
    kind = written[0]["experts"]
    shown = next(frame.value for frame in test.dataframe if "accuracy" in frame.value.columns)
    expected = [float(row["accuracy"]) for row in written if row["experts"] == kind]
    assert list(shown["accuracy"]) == expected
    assert any("seed" in caption.value for caption in test.caption)


def test_what_is_told_the_task_and_what_awd_precedes_says_so() -> None:
    shown = leaderboard.rows().set_index("method")
    known = {"base", "experts, each on its own task"}
    for method in awd.METHODS:
        one = f"{method.title} (a model for each task)" if method.needs_task else method.title
        known |= {one, f"AWD (row) + {one}"}
    assert set(shown.index) <= known
    assert {"Task arithmetic", "AWD (row) + Task arithmetic"} <= set(shown.index)
