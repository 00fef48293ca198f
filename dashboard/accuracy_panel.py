"""Accuracy of base, experts and the merge as set, evaluated in the background."""

import streamlit as st

from analysis import figures, tables
from awd_core import AwdError, Study
from awd_core.evaluation import LIVE_SAMPLE, TaskAccuracy, mean_accuracy, recovered_gap
from dashboard import evaluations, state
from dashboard.charts import chart, theme
from dashboard.state import Setting
from dashboard.zoo_study import is_of_zoo

# What can be evaluated: title -> (split, texts per task).
SAMPLES: dict[str, tuple[str, int | None]] = {
    f"{LIVE_SAMPLE} texts a task": ("validation", LIVE_SAMPLE),
    "all validation": ("validation", None),
    "all test": ("test", None),
}
SAMPLES_HELP = """
Tune on validation texts; look at the test split at the end, or it is no test any more.
Error bars are one standard error, √(p(1−p)/n).
"""
# What a look costs the server is little; what a user waits longer is seen.
SECONDS_BETWEEN_LOOKS = 0.5


def accuracy_panel(study: Study, setting: Setting) -> None:
    """Draw the panel; it fills itself when a result arrives, and never holds up the page."""
    if not is_of_zoo(study):
        st.info(
            "The tasks beside the sliders belong to the zoo's experts. Page Try evaluates base,"
            " experts and this merge on your own texts.",
            icon=":material/info:",
        )
        return
    sample = st.segmented_control(
        "Accuracy on",
        tuple(SAMPLES),
        default=next(iter(SAMPLES)),
        required=True,
        key="sample",
        bind="query-params",
        help=SAMPLES_HELP,
    ) or next(iter(SAMPLES))
    if look(study, setting, sample) is None:
        _waiting(study, setting, sample)
    else:
        _draw(study, setting, sample)


def look(study: Study, setting: Setting, sample: str) -> evaluations.Result | AwdError | None:
    """The merge's result when everything is known; else None, and it is being worked out."""
    split, limit = SAMPLES[sample]
    recipe = setting.recipe(study)
    found = {
        what: state.evaluator().ask(state.session_id(), wish)
        for what, wish in evaluations.wishes(study, recipe, split, limit).items()
    }
    for result in found.values():
        if isinstance(result, AwdError):
            return result
    if any(result is None for result in found.values()):
        return None
    state.note_evaluated(recipe.digest, alike(study, sample), found, setting.words)
    return found["merge"]


def alike(study: Study, sample: str) -> tuple[str, str]:
    """Results with the same of this are of the same tasks and texts."""
    return study.collected_digest, sample


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _waiting(study: Study, setting: Setting, sample: str) -> None:
    if look(study, setting, sample) is not None:
        st.rerun()
    st.caption(
        ":material/hourglass_top: evaluating this setting… The first time it also loads"
        " transformers and evaluates base and experts, which takes some seconds more."
    )
    shown = state.newest_evaluated(alike(study, sample))
    if shown is not None:
        _bars({"base": shown["base"], "experts": shown["experts"], "last": shown["merge"]})


def _draw(study: Study, setting: Setting, sample: str) -> None:
    result = look(study, setting, sample)
    if isinstance(result, AwdError):
        state.show_error(result)
        return
    found, previous = state.evaluated()
    share = recovered_gap(found["merge"], found["base"], found["experts"])
    st.markdown(
        f"**{mean_accuracy(found['merge']):.1%}** mean accuracy:"
        f" base {mean_accuracy(found['base']):.1%},"
        f" experts on their own tasks {mean_accuracy(found['experts']):.1%}."
        f" The merge recovers **{share:.0%}** of the gap."
    )
    settings = {"base": found["base"], "experts": found["experts"]}
    if previous is not None:
        settings["last"] = previous[0]["merge"]
    _bars({**settings, "this": found["merge"]})
    n = found["merge"][0].n
    last = f" Last setting: {previous[1]}." if previous is not None else ""
    st.caption(f"About {n} {found['merge'][0].split} texts a task; bars: ± 1 standard error.{last}")


def _bars(settings: dict[str, tuple[TaskAccuracy, ...]]) -> None:
    names = {
        "base": "base",
        "experts": "own expert",
        "last": "last setting",
        "this": "this setting",
    }
    table = tables.accuracies({names[key]: result for key, result in settings.items()})
    chart(
        figures.accuracy_bars(table, theme=theme()),
        "accuracy_" + "_".join(settings),
        "Bars of accuracy for each task: base, own expert, last and this setting.",
    )
