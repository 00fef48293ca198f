"""Base, experts and merge on texts of one's own: a job, and what it found."""

from pathlib import Path

import streamlit as st

from analysis import own_scores
from awd_core import AwdError, Recipe, Study, files, open_checkpoint
from awd_core.evaluation.own import Metric, metric_of
from awd_core.evaluation.own_results import Evaluated, read_evaluated
from awd_core.evaluation.own_texts import SUFFIXES, read_texts
from dashboard import jobs, roots, state
from dashboard.charts import chart, theme
from dashboard.job_panel import show_job
from dashboard.state import Setting

FOLDER = "evaluations"  # in the study's own
HOW: dict[Metric, str] = {
    "accuracy": "A text encoder answers with the nearest label: the first texts of each label, 16"
    " at most, show the base what the label means, the others are asked. Each text needs a label;"
    " heads in the checkpoints are not used.",
    "loss": "A language model is asked how surprised it is: mean loss in nats a token, and"
    " perplexity. Labels are not needed.",
}
FILE_HELP = """
`.jsonl` with `{"text": ..., "label": ..., "task": ...}` on each line, `.csv` with these columns, or
`.txt` with paragraphs. `task` groups texts and may be left out.
"""


def draw(study: Study, setting: Setting) -> None:
    """Draw the choice of texts, the job and the newest results."""
    st.subheader("On your own texts")
    try:
        base = open_checkpoint(study.base.source, allow_pickle=state.pickle_allowed())
        metric = metric_of(base)
    except AwdError as error:
        st.info(f"{error.problem.rstrip('.')}: {error.received}.", icon=":material/cloud_off:")
        st.caption(error.remedy or "")
        return
    st.caption(HOW[metric])
    texts = _chosen_texts()
    recipe = setting.recipe(study)
    if texts is not None:
        _start(study, recipe, texts)
    show_job(lambda job: job.command[0] == "evaluate")
    _results(study, recipe)


def _chosen_texts() -> Path | None:
    """The file that was dropped, or the one at a path under the allowed roots, if it is whole."""
    left, right = st.columns(2)
    kinds = [suffix.removeprefix(".") for suffix in SUFFIXES]
    dropped = left.file_uploader("Drop a file of texts", kinds, key="own_file", help=FILE_HELP)
    path = right.text_input("Or its path on this machine", key="own_path", placeholder="texts.csv")
    try:
        if dropped is not None:
            file = files.home() / "texts" / dropped.file_id / Path(dropped.name).name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(dropped.getvalue())
        elif path.strip():
            file = roots.allowed(path.strip())
        else:
            return None
        found = read_texts(file)
    except AwdError as error:
        state.show_error(error)
        return None
    tasks = dict.fromkeys(text.task for text in found)
    labels = {text.label for text in found if text.label is not None}
    st.markdown(
        f"`{file.name}`: {len(found)} texts, {len(labels)} labels, tasks: {', '.join(tasks)}."
    )
    return file


def _start(study: Study, recipe: Recipe, texts: Path) -> None:
    assert study.path is not None
    out = study.path / FOLDER / f"{recipe.digest[:8]}-{files.sha256(texts)[:8]}.json"
    if out.exists():
        st.caption("This setting was evaluated on these texts; its numbers are below.")
        return
    if st.button(
        "Evaluate base, experts and this merge",
        type="primary",
        icon=":material/play_arrow:",
        key="own_start",
        disabled=jobs.is_running(state.job_id()),
    ):
        file = jobs.recipe_file(recipe)
        command = ("evaluate", str(file), "--texts", str(texts), "--study", str(study.path))
        command = (*command, "--output", str(out), *state.pickle_options())
        state.watch_job(jobs.start("Evaluation", command, out).id)
        st.rerun()


def kept(study: Study) -> list[Evaluated]:
    """Everything that was evaluated of this study, newest first; damaged files are left out."""
    folder = study.path / FOLDER if study.path else None
    found = []
    for file in sorted(folder.glob("*.json")) if folder else ():
        try:
            found.append(read_evaluated(file))
        except AwdError as error:
            state.show_error(error)
    return sorted(found, key=lambda one: one.date, reverse=True)


def _results(study: Study, recipe: Recipe) -> None:
    found = kept(study)
    if not found:
        return
    labels = [_label(one, recipe) for one in found]
    at = st.selectbox(
        "Evaluated", range(len(found)), format_func=labels.__getitem__, key="own_kept"
    )
    shown = found[at]
    table = own_scores.table(shown.scores)
    metric = shown.scores[0].metric
    best = "Higher is better." if metric == "accuracy" else "Lower is better."
    chart(
        own_scores.bars(table, f"{metric.capitalize()} on {shown.texts}", theme()),
        "own_scores",
        f"Bars of {metric} for base, every expert and the merge, one bar a task.",
    )
    st.caption(f"{best} Bars: ± 1 standard error over texts.")
    st.dataframe(
        table if metric == "loss" else table.drop(columns=["perplexity", "tokens"]),
        hide_index=True,
        key="own_numbers",
        alt=f"{metric} of every model on every task.",
    )
    with st.expander("The recipe that was evaluated", icon=":material/description:"):
        st.code(shown.recipe, language="yaml")
    st.download_button(
        "Download as CSV", table.to_csv(index=False), "own-texts.csv", "text/csv", key="own_csv"
    )


def _label(one: Evaluated, recipe: Recipe) -> str:
    whose = "this setting" if one.recipe_digest == recipe.digest else "another setting"
    return f"{one.texts}, {whose} ({one.recipe_digest[:8]}), {one.date[:16].replace('T', ' ')}"
