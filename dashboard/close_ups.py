"""What stands behind the numbers of one part: weight by weight, direction by direction."""

from typing import Literal, cast, get_args

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analysis import element_figures, spectral_figures
from analysis.theme import Theme
from analysis.view import View
from awd_core import Study
from awd_core.elements import DENSITIES, MASK_SHARES
from dashboard import jobs, state
from dashboard.charts import chart, theme
from dashboard.job_panel import show_job
from dashboard.look import Part

CloseUp = Literal["agreement", "masks", "spectrum", "overcounting"]
CLOSE_UPS: tuple[CloseUp, ...] = get_args(CloseUp)
TITLES: dict[CloseUp, str] = {
    "agreement": "Agreement on signs",
    "masks": "Who needs which weights",
    "spectrum": "Singular values",
    "overcounting": "Directions counted several times",
}
# The close-up that explains a measure, by how the measure's key begins.
EXPLAINS: dict[str, CloseUp] = {
    "sign_conflict": "agreement",
    "element_": "agreement",
    "catastrophic": "masks",
    "selfish": "masks",
    "general": "masks",
    "mask_": "masks",
    "stable_rank": "spectrum",
    "entropy_rank": "spectrum",
    "singular_task": "spectrum",
    "subspace": "spectrum",
    "spectral_overcounting": "overcounting",
}
KEY, OF_MEASURE = "close_up", "close_up_of"
SPECTRA_HELP = (
    "Decomposes every matrix of every expert; reads the weights once more. The spectral measures"
    " and AWD at granularity spectral come with it."
)


def explaining(measure: str) -> CloseUp:
    """The close-up that belongs to a measure; agreement where none does."""
    for start, shown in EXPLAINS.items():
        if measure.startswith(start):
            return shown
    return "agreement"


def draw(study: Study, view: View, part: Part, measure: str) -> None:
    """Draw the choice and the chosen close-up; it follows the measure until it is chosen anew."""
    st.subheader("Behind the numbers")
    chosen = _choice(measure)
    if chosen == "agreement":
        _agreement(study, part)
    elif chosen == "masks":
        _masks(study, part)
    elif not study.has_spectra:
        _no_spectra(study)
    elif chosen == "spectrum":
        _spectrum(study, view, part)
    else:
        _overcounting(view, part)


def _choice(measure: str) -> CloseUp:
    if st.session_state.get(OF_MEASURE, measure) != measure:
        st.session_state[KEY] = explaining(measure)
    st.session_state[OF_MEASURE] = measure
    default = None if KEY in st.session_state else explaining(measure)
    chosen = st.segmented_control(
        "Look closer",
        CLOSE_UPS,
        default=default,
        required=True,
        format_func=TITLES.__getitem__,
        key=KEY,
        label_visibility="collapsed",
        bind="query-params",
    )
    return cast(CloseUp, chosen or "agreement")


def _agreement(study: Study, part: Part) -> None:
    density = st.select_slider(
        "Largest entries that count",
        sorted(DENSITIES),
        value=0.2,
        format_func=lambda share: f"{share:.0%}",
        key="density",
        help="The smallest entries of a task vector are noise, and noise agrees on nothing: half"
        " of it points up. Weights that an expert does not move are never counted.",
        bind="query-params",
    )
    table, figure = _agreement_of(study.digest, part, density, theme(), study)
    st.markdown(element_figures.agreement_sentence(table))
    chart(figure, "agreement", f"Histogram of agreement on direction in {part.words}.")
    _numbers(table, "agreement_numbers")


@st.cache_resource(show_spinner=False, max_entries=64)
def _agreement_of(
    digest: str, part: Part, density: float, look: Theme, _study: Study
) -> tuple[pd.DataFrame, go.Figure]:
    table = element_figures.agreement(state.plain_view(_study), part.scope, part.label, density)
    return table, element_figures.agreement_bars(table, part.words, theme=look)


def _masks(study: Study, part: Part) -> None:
    share = st.select_slider(
        "λ of the masks",
        MASK_SHARES,
        value=0.4,
        key="mask_share",
        help="An expert needs a weight where |τₖ| > λ |Σⱼ τⱼ − τₖ|: its own step is not small"
        " beside that of all others together.",
        bind="query-params",
    )
    table, densities, figure = _masks_of(study.digest, part, share, theme(), study)
    st.markdown(element_figures.mask_sentence(state.plain_view(study), share))
    chart(
        figure,
        "masks",
        "Stacked bars: shares of the moved weights that several experts need, one alone, or none,"
        f" by block; and how much of {part.words} the mask of each expert keeps.",
    )
    left, right = st.columns([3, 2])
    with left:
        _numbers(table, "mask_numbers")
    with right:
        _numbers(densities, "density_numbers")


@st.cache_resource(show_spinner=False, max_entries=64)
def _masks_of(
    digest: str, part: Part, share: float, look: Theme, _study: Study
) -> tuple[pd.DataFrame, pd.DataFrame, go.Figure]:
    view = state.plain_view(_study)
    table = element_figures.masks(view, share)
    densities = element_figures.mask_densities(view, share, part.scope, part.label)
    figure = element_figures.mask_bars(table, densities, part.words, theme=look)
    return table, densities, figure


def _spectrum(study: Study, view: View, part: Part) -> None:
    tensor = _matrix(view, part)
    if tensor is None:
        return
    table, figure = _spectrum_of(study.digest, tensor, theme(), study)
    st.markdown(spectral_figures.spectrum_sentence(state.plain_view(study), tensor))
    chart(figure, "spectrum", f"Lines of falling singular values of each expert in {tensor}.")
    _numbers(table, "spectrum_numbers")


@st.cache_resource(show_spinner=False, max_entries=64)
def _spectrum_of(
    digest: str, tensor: str, look: Theme, _study: Study
) -> tuple[pd.DataFrame, go.Figure]:
    table = spectral_figures.spectrum(state.plain_view(_study), tensor)
    return table, spectral_figures.spectrum_lines(table, theme=look)


def _overcounting(view: View, part: Part) -> None:
    tensor = _matrix(view, part)
    if tensor is None:
        return
    table = spectral_figures.overcounting(view, tensor)
    st.markdown(spectral_figures.overcounting_sentence(view, tensor))
    chart(
        spectral_figures.overcounting_heatmap(table, theme=theme()),
        "overcounting",
        f"Heatmap of {tensor}: experts by directions of the summed task vectors; 1 is kept, more"
        " counted several times, less attenuated, below 0 reversed.",
    )
    st.caption("Of the task vectors before AWD, at the λ of the sidebar. Grey: does not move.")
    wide = table.pivot_table(index="expert", columns="direction", values="scale", sort=False)
    with st.expander("The numbers of this picture", icon=":material/table:"):
        st.dataframe(wide, key="overcounting_numbers")


def _matrix(view: View, part: Part) -> str | None:
    """The chosen tensor, or the matrix of the part that the experts move most."""
    found = spectral_figures.most_moved_matrix(view, part.scope, part.label)
    if found is None:
        st.caption(f"Nobody moves a matrix in {part.words}.")
    elif part.tensor is None:
        st.caption(
            f"Of {part.words} the matrix that the experts move most; choose another in the table"
            " of tensors."
        )
    return found


def _no_spectra(study: Study) -> None:
    if study.scales is not None:
        st.info("Singular values are those of the task vectors as they are: turn off **Equalise"
                " norms first**.", icon=":material/info:")  # fmt: skip
        return
    st.info(
        "This study holds no singular values yet. The button works them out in the background,"
        " once; the weights have to be on this machine.",
        icon=":material/hourglass_empty:",
    )
    if st.button(
        "Work out the singular values",
        icon=":material/insights:",
        key="collect_spectra",
        disabled=jobs.is_running(state.job_id()),
        help=SPECTRA_HELP,
    ):
        assert study.path is not None
        command = ("spectra", str(study.path), *state.pickle_options())
        state.watch_job(jobs.start("Singular values", command, study.path).id)
        st.rerun()
    show_job(lambda job: job.command[0] == "spectra")


def _numbers(table: pd.DataFrame, key: str) -> None:
    with st.expander("The numbers of this picture", icon=":material/table:"):
        st.dataframe(table, hide_index=True, key=key)
