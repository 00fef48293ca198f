"""Try: what base, experts and the merge can do, task by task."""

from collections.abc import Mapping, Sequence

import streamlit as st

from analysis import accuracy_figures, figures
from analysis.lm_eval import beside, read_lm_eval
from analysis.words import counted
from awd_core import AwdError, Study
from awd_core.evaluation import TaskAccuracy, normalised_accuracy
from dashboard import evaluations, own_texts, state
from dashboard.accuracy_panel import SAMPLES, accuracy_panel, alike, look
from dashboard.charts import chart, theme
from dashboard.state import Setting
from dashboard.zoo_study import is_of_zoo, own_tasks

SECONDS_BETWEEN_LOOKS = 1.0
LM_EVAL = (
    "lm_eval --model hf --model_args pretrained=MERGED_FOLDER --tasks YOUR_TASKS"
    " --output_path results/"
)
LM_EVAL_HELP = """
`lm_eval --model hf --model_args pretrained=FOLDER --tasks ... --output_path results/` writes a
`results_*.json`. Its numbers are shown beside one another; nothing is sent anywhere.
"""


def show() -> None:
    """Draw the page."""
    study, setting = state.current()
    st.title("What can the merge do?")
    st.caption(f"This setting: {setting.words}.")
    if is_of_zoo(study):
        _zoo(study, setting)
    own_texts.draw(state.open_study(), setting)
    _imported(study)


def _zoo(study: Study, setting: Setting) -> None:
    accuracy_panel(study, setting)
    sample = st.session_state.get("sample") or next(iter(SAMPLES))
    found = look(study, setting, sample)
    is_known = isinstance(found, tuple)
    if is_known:
        results, _ = state.evaluated()
        _normalised(results)
    _transfer(study, sample)
    _confusion(study, sample, is_known)


def _normalised(results: dict[str, Sequence[TaskAccuracy]]) -> None:
    merge, experts = results["merge"], results["experts"]
    table = accuracy_figures.normalised({"base": results["base"], "this setting": merge}, experts)
    st.markdown(
        f"The merge has **{normalised_accuracy(merge, experts):.1%}** of the experts' accuracy,"
        " averaged over the tasks."
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        chart(
            accuracy_figures.normalised_bars(table, theme=theme()),
            "normalised",
            "Bars of accuracy relative to each task's own expert, for base and this setting.",
        )
    with right:
        chart(
            accuracy_figures.radar(table, theme=theme()),
            "radar",
            "The same numbers as a radar with one axis a task.",
        )
    with st.expander("The numbers", icon=":material/table:"):
        st.dataframe(table.pivot_table(index="task", columns="setting", values="normalised"))


def _transfer(study: Study, sample: str) -> None:
    st.subheader("What each expert knows of the others' tasks")
    if not st.toggle("Evaluate every expert on every task", key="transfer", bind="query-params"):
        more = counted(study.n_experts, "more evaluation")
        st.caption(f"{more.capitalize()}, in the background; about four seconds each.")
        return
    found = _asked(study, sample)
    if all(found.values()):
        _draw_transfer(found)
    else:
        _waiting_for_transfer(study, sample)


def _asked(study: Study, sample: str) -> dict[str, evaluations.Result | AwdError | None]:
    """What is known of every expert on every task; the rest is being worked out."""
    wishes = evaluations.transfer_wishes(study, *SAMPLES[sample])
    return {
        label: state.evaluator().ask(f"{state.session_id()}:{label}", wish)
        for label, wish in wishes.items()
    }


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _waiting_for_transfer(study: Study, sample: str) -> None:
    found = _asked(study, sample)
    known = {label: one for label, one in found.items() if one is not None}
    if len(known) == len(found):
        st.rerun()
    st.progress(len(known) / len(found), text=f"{len(known)} of {len(found)} experts")
    if known:
        _draw_transfer(known)


def _draw_transfer(found: Mapping[str, evaluations.Result | AwdError | None]) -> None:
    for one in found.values():
        if isinstance(one, AwdError):
            state.show_error(one)
            return
    frame = accuracy_figures.transfer({k: v for k, v in found.items() if isinstance(v, tuple)})
    st.html(
        figures.number_tables(
            {"expert, on task": frame},
            accuracy_figures.transfer_colouring(theme()),
            "Accuracy of every expert (rows) on every task (columns)",
            theme(),
        )
    )


def _confusion(study: Study, sample: str, is_known: bool) -> None:
    """Of this setting where `is_known`, else of the last one that is."""
    st.subheader("Which answers are mistaken for which")
    if not st.toggle("Show labels against answers", key="confusion", bind="query-params"):
        return
    shown = state.newest_evaluated(alike(study, sample))
    if shown is None:
        st.caption("It appears with the first accuracy.")
        return
    tasks = {task.key: task for task in own_tasks(study)}
    key = st.selectbox(
        "Task",
        tuple(tasks),
        format_func=lambda key: tasks[key].title,
        key="confusion_task",
        bind="query-params",
    )
    st.caption(tasks[key].question)
    settings = {
        "base": "base",
        "experts": "own expert",
        "merge": "this setting" if is_known else "last setting",
    }
    frames = {
        words: accuracy_figures.confusion(one, tasks[key].labels)
        for name, words in settings.items()
        for one in shown[name]
        if one.task == key
    }
    st.html(
        figures.number_tables(
            frames,
            accuracy_figures.confusion_colouring(theme()),
            "Share of the texts of each label (rows) that got each answer (columns)",
            theme(),
        )
    )


def _imported(study: Study) -> None:
    st.subheader("Results of lm-eval")
    if not is_of_zoo(study):
        st.caption(
            "Benchmarks with tasks of their own: write the merge on page Merge, run the harness,"
            " and drop its results here."
        )
        st.code(LM_EVAL, language="bash")
    files = st.file_uploader(
        "results_*.json", "json", accept_multiple_files=True, key="lm_eval", help=LM_EVAL_HELP
    )
    tables = {}
    for position, file in enumerate(files):
        name = file.name if file.name not in tables else f"{file.name}, {position + 1}"
        try:
            tables[name] = read_lm_eval(file.getvalue().decode("utf-8", "replace"), file.name)
        except AwdError as error:
            state.show_error(error)
    if not tables:
        return
    table = beside(tables)
    wide = table.pivot_table(index=["task", "metric"], columns="model", values="value", sort=False)
    st.dataframe(
        wide,
        key="lm_eval_numbers",
        placeholder="–",
        alt="Metrics of every task, one column a model.",
    )
    st.download_button(
        "Download as CSV", table.to_csv(index=False), "lm-eval.csv", "text/csv", key="lm_eval_csv"
    )


show()
