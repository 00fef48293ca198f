"""The sidebar: every slider that decides a merge, shared by all pages."""

import streamlit as st

from analysis.words import counted, size
from awd_core import Study
from dashboard import journal, state
from dashboard.awd_controls import awd_controls
from dashboard.block_controls import block_controls
from dashboard.merge_controls import merge_controls
from dashboard.state import Setting
from dashboard.zoo_study import is_of_zoo, is_whole_zoo

EQUALISE_HELP = """
Scales every task vector to their mean length before anything else. A merge and AWD react to lengths
as well as to directions: a long task vector pulls more, AWD amplifies the shortest one.
"""


def sidebar(collected: Study) -> tuple[Study, Setting]:
    """Draw the sidebar and read it: the study to look at, and the setting."""
    study = collected
    with st.sidebar:
        _headline(study)
        equalise = st.toggle(
            "Equalise norms first", key="equalise", help=EQUALISE_HELP, bind="query-params"
        )
        if equalise:
            study = state.equalised(study)
        st.subheader("Redundant vector (AWD)", divider="gray")
        disentangle = awd_controls(study, collected)
        st.subheader("Merge", divider="gray")
        method, coefficients, knobs = merge_controls(study)
        if disentangle is not None and not method.takes_task_vectors:
            st.caption(f"{method.title} merges models, not task vectors: AWD is left out.")
            disentangle = None
        factors = ()
        if method.takes_coefficients and method.coefficients_are == "scales":
            factors = block_controls(study)
        setting = Setting(disentangle, method.key, coefficients, knobs, equalise, factors)
        journal.draw(journal.note(study, setting))
    return study, setting


def _headline(study: Study) -> None:
    name = study.path.name if study.path else "Study"
    if is_of_zoo(study):
        name = "The zoo" if is_whole_zoo(study) else "Of the zoo"
    st.markdown(f"**{name}**: {study.base.label} and {counted(study.n_experts, 'expert')}")
    n_elements = sum(tensor.n_elements for tensor in study.tensors)
    st.caption(
        f"{size(n_elements)} parameters, {len(study.tensors)} tensors."
        + (" Other models: page Open." if is_of_zoo(study) else "")
    )
