"""Compare: pinned settings side by side, in measures, accuracy and cost."""

import pandas as pd
import streamlit as st

from analysis import figures, tables
from analysis.accuracy_drop import correlation, drop_scatter, drops
from analysis.measures import measure
from analysis.overview import overview, overview_heatmap, shared_range
from analysis.view import View
from awd_core import AwdError, Study
from awd_core.evaluation import mean_accuracy, normalised_accuracy, recovered_gap
from dashboard import comparison, evaluations, journal, leaderboard, state
from dashboard.accuracy_panel import SAMPLES
from dashboard.charts import chart, theme
from dashboard.state import Setting
from dashboard.zoo_study import is_of_zoo

SECONDS_BETWEEN_LOOKS = 1.0
AFTER = measure("cosine_after")


def show() -> None:
    """Draw the page."""
    _, setting = state.current()
    study = state.open_study()
    found = journal.journal(study)
    st.title("Compare settings")
    pins = {name: entry.setting for name, entry in found.pins.items()}
    if not pins:
        st.info(
            "Nothing is pinned yet. Set the sliders, press **Pin** at the foot of the sidebar, move"
            " the sliders on: both settings then stand here side by side.",
            icon=":material/keep:",
        )
        st.button("Pin this setting", type="primary", on_click=journal.pin, args=(found,))
        return
    chosen = comparison.settings(study, setting, pins)
    st.markdown("\n".join(f"- **{name}**: {one.words}" for name, one in chosen.items()))
    views = comparison.views(study, chosen)
    numbers = comparison.numbers(views, chosen)
    st.subheader("Measures of the whole model")
    # A table breaks its words, so all settings are in view on a narrow screen, too.
    st.table(
        numbers.style.format("{:.4g}", na_rep="needs weights"),
        alt="Measures in rows, settings in columns.",
    )
    if study.n_experts > 1:
        _difference(views)
    _accuracy(study, chosen, views)
    st.subheader("What writing them takes")
    st.dataframe(
        comparison.costs(chosen, study),
        hide_index=True,
        key="costs",
        column_config={"parameters": st.column_config.NumberColumn(format="localized")},
    )


def _difference(views: dict[str, View]) -> None:
    """Cosines of two settings and what the second changes, on the same rows."""
    st.subheader("Where two settings differ")
    names = list(views)
    if len(names) < 2:
        st.caption("Move a slider, or pin a second setting: the difference appears here.")
        return
    left, right = st.columns(2)
    state.forget_unless("first_setting", names)
    state.forget_unless("second_setting", names)
    first = left.selectbox("Setting", names, index=0, key="first_setting")
    second = right.selectbox("minus", names, index=1, key="second_setting")
    frames = {name: overview(views[name], AFTER, "pairs") for name in (first, second)}
    changed = frames[first] - frames[second]
    order = figures.by_size(frames[second])
    chart(
        overview_heatmap(
            changed.loc[order],
            AFTER,
            shared_range(AFTER, changed),
            f"Cosine of disentangled vectors: {first} minus {second}",
            theme(),
        ),
        "difference",
        f"Heatmap of the difference of cosines between settings {first} and {second}: pairs of"
        " experts by blocks.",
    )
    matrices = {
        f"{name}": tables.matrix(views[name], when="after") for name in dict.fromkeys(names[:3])
    }
    st.html(
        figures.cosine_matrices(
            matrices, title="Cosine of every two experts over the whole model", theme=theme()
        )
    )
    with st.expander("The numbers", icon=":material/table:"):
        st.dataframe(changed.loc[order], key="difference_numbers")


def _accuracy(study: Study, chosen: dict[str, Setting], views: dict[str, View]) -> None:
    st.subheader("Accuracy")
    if not is_of_zoo(study):
        st.caption("The tasks that come with AWD Studio belong to the zoo; page Try reads others.")
        return
    sample = st.segmented_control(
        "Accuracy on",
        tuple(SAMPLES),
        default=next(iter(SAMPLES)),
        required=True,
        key="compare_sample",
        bind="query-params",
    )
    sample = sample or next(iter(SAMPLES))
    found = _asked(study, chosen, sample)
    if all(found.values()):
        _draw_accuracies(found, chosen, views)
    else:
        _waiting(study, chosen, views, sample)


def _asked(
    study: Study, chosen: dict[str, Setting], sample: str
) -> dict[str, evaluations.Result | AwdError | None]:
    """What is known of base, experts and every setting; the rest is being worked out."""
    found = {}
    for name, setting in chosen.items():
        wishes = evaluations.wishes(study, setting.recipe(study), *SAMPLES[sample])
        session = f"{state.session_id()}:{name}"
        for what in ("experts", "base", "merge"):
            key = name if what == "merge" else what
            found[key] = state.evaluator().ask(session, wishes[what])
    return found


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _waiting(study: Study, chosen: dict[str, Setting], views: dict[str, View], sample: str) -> None:
    found = _asked(study, chosen, sample)
    known = sum(one is not None for one in found.values())
    if known == len(found):
        st.rerun()
    st.progress(known / len(found), text=f"{known} of {len(found)} evaluated")
    _draw_accuracies(found, chosen, views)


def _draw_accuracies(
    found: dict[str, evaluations.Result | AwdError | None],
    chosen: dict[str, Setting],
    views: dict[str, View],
) -> None:
    for one in found.values():
        if isinstance(one, AwdError):
            state.show_error(one)
            return
    known = {name: one for name, one in found.items() if isinstance(one, tuple)}
    if "base" not in known or "experts" not in known:
        return
    merges = {name: result for name, result in known.items() if name in chosen}
    base, experts = known["base"], known["experts"]
    bars = tables.accuracies({"base": base, "own expert": experts, **merges})
    chart(
        figures.accuracy_bars(bars, theme=theme()),
        "compared_accuracy",
        "Bars of accuracy for each task: base, own expert, and every pinned setting.",
    )
    if merges:
        st.dataframe(
            pd.DataFrame(
                {
                    name: {
                        "mean accuracy": mean_accuracy(result),
                        "share of the experts'": normalised_accuracy(result, experts),
                        "share of the gap": recovered_gap(result, base, experts),
                    }
                    for name, result in merges.items()
                }
            ).style.format("{:.1%}"),
            key="accuracies",
        )
    _draw_drops(views, merges, experts)


def _draw_drops(
    views: dict[str, View],
    merges: dict[str, evaluations.Result],
    experts: evaluations.Result,
) -> None:
    """Interference of every expert against the accuracy that a merge takes from it."""
    if not merges or len(experts) != next(iter(views.values())).n_experts:
        return
    name = list(merges)[-1]
    table = drops(views[name], experts, merges[name])
    chart(
        drop_scatter(table, f"Does the expert that interferes more lose more? ({name})", theme()),
        "drops",
        "Interference of each expert against accuracy lost in the merge.",
    )
    st.caption(correlation(table).sentence)
    with st.expander("The numbers of this picture", icon=":material/table:"):
        st.dataframe(table, hide_index=True, key="drop_numbers")


show()
leaderboard.show(state.open_study())
