"""Every method on the zoos, as `python -m benchmarks.methods_on_zoo` measured it."""

from functools import cache
from pathlib import Path

import pandas as pd
import streamlit as st

from awd_core import Study
from dashboard.zoo_study import is_whole_zoo

FILE = Path(__file__).with_suffix(".csv")
SHARE, COSINE = "%.4f", "%.3f"
COLUMNS = {
    "method": st.column_config.TextColumn("Method", pinned=True),
    "accuracy": st.column_config.NumberColumn(
        "Accuracy", format=SHARE, help="Mean over tasks on the whole test split, at the best λ."
    ),
    "standard_error": st.column_config.NumberColumn(
        "± standard error", format=SHARE, help="Of the mean over tasks, from the number of texts."
    ),
    "deviation": st.column_config.NumberColumn(
        "Deviation over seeds", format=SHARE, help="Standard deviation over zoos of other seeds."
    ),
    "zoos": st.column_config.NumberColumn("Seeds", help="Zoos it was measured on."),
    "lambda": st.column_config.TextColumn(
        "Best λ", help="Chosen on a sample of the validation split, one for every zoo."
    ),
    "default": st.column_config.TextColumn("Default λ"),
    "accuracy_at_default": st.column_config.NumberColumn("Accuracy at default λ", format=SHARE),
    "normalised": st.column_config.NumberColumn(
        "Share of experts'", format=COSINE, help="Mean of accuracy over that of the task's expert."
    ),
    "mean_cosine": st.column_config.NumberColumn(
        "Mean cosine", format=COSINE, help="cos(merged change, task vector), mean over experts."
    ),
    "least_cosine": st.column_config.NumberColumn(
        "Least cosine", format=COSINE, help="The same for the expert that is served least."
    ),
    "length": st.column_config.NumberColumn(
        "Length", format="%.2f", help="Norm of the merged change, in mean norms of task vectors."
    ),
    "cpu_s": st.column_config.NumberColumn("Processor s", format="%.1f"),
    "peak_mb": st.column_config.NumberColumn("Peak MB", format="%.0f"),
    "read_mb": st.column_config.NumberColumn("Read MB", format="%.0f"),
}


@cache
def rows() -> pd.DataFrame:
    """What was measured, one row a method; the first line of the file says how."""
    found = pd.read_csv(FILE, comment="#", dtype={"default": str, "lambda": str})
    with_awd = found["awd"] == 1
    found.loc[with_awd, "method"] = "AWD (row) + " + found.loc[with_awd, "method"]
    needs_task = found["task_known"] == 1
    found.loc[needs_task, "method"] += " (a model for each task)"
    return found


def show(study: Study) -> None:
    """The table, where the zoo is open."""
    if not is_whole_zoo(study):
        return
    st.subheader("Every method on the zoo")
    kinds = list(dict.fromkeys(rows()["experts"]))
    chosen = st.segmented_control(
        "Experts", kinds, default=kinds[0], required=True, key="leaderboard", bind="query-params"
    )
    found = rows()[rows()["experts"] == (chosen or kinds[0])]
    st.dataframe(
        found[list(COLUMNS)],
        column_config=COLUMNS,
        hide_index=True,
        key="leaderboard_rows",
        placeholder="–",
        alt="Methods in rows; accuracy, interference and cost of each in columns.",
    )
    most = max(map(int, found["zoos"]))
    st.caption(
        "Measured once and shipped, not worked out here: `python -m benchmarks.methods_on_zoo`."
        f" Up to {most} {'seeds' if most > 1 else 'seed'}; two methods whose accuracies are closer"
        " than two standard errors are not told apart by these texts. A method with a model for"
        " each task is told the task, which a merge is not: it is in no competition with them."
    )
