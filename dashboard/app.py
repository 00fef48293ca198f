"""The router: one row per page, the shared settings in the sidebar, then the page."""

from pathlib import Path

import streamlit as st

from dashboard import controls, link, state
from dashboard.awd_controls import nearby
from dashboard.latency import begin_run, settle_server, solve_ahead

st.set_page_config(
    page_title="AWD Studio",
    page_icon=str(Path(__file__).parent / "icon.svg"),  # a named icon would be fetched
    layout="wide",
    initial_sidebar_state=330,  # pixels: four granularities stand in one line
)
# Figures need the width that the wide layout leaves empty at both sides.
st.html("<style>.stMainBlockContainer {padding-left: 2rem; padding-right: 2rem}</style>")
OPEN = st.Page("views/open.py", title="Open", icon=":material/folder_open:")
PAGES = (
    OPEN,
    st.Page("views/interference.py", title="Interference", icon=":material/grid_on:", default=True),
    st.Page("views/tune.py", title="Tune", icon=":material/tune:"),
    st.Page("views/merge.py", title="Merge", icon=":material/merge:"),
    st.Page("views/evaluate.py", title="Try", icon=":material/fact_check:"),
    st.Page("views/compare.py", title="Compare", icon=":material/compare:"),
    st.Page("views/report.py", title="Report", icon=":material/co_present:"),
)
FIRST_TIME = (
    "Getting ready: reading task vectors and compiling solvers. The first time takes some seconds."
)
page = st.navigation(PAGES, position="top")


def show_page() -> None:
    """Open the study, read the sidebar, draw the page."""
    begin_run()
    link.remember()
    waiting, ready = st.empty(), state.is_ready()
    if not ready:
        waiting.info(FIRST_TIME, icon=":material/hourglass_top:")
    try:
        study, setting = controls.sidebar(state.open_study())
        state.remember(study, setting)
    except state.CoreError as error:
        if page != OPEN:
            _refuse(error)
            return
        state.show_error(error)
    finally:
        if not ready:
            waiting.empty()
    page.run()
    link.tell(waiting)
    if page != OPEN:
        study, setting = state.current()
        solve_ahead(study, setting, nearby(setting.disentangle))


def _refuse(error: state.CoreError) -> None:
    st.title("This cannot be shown")
    state.show_error(error)
    st.page_link(OPEN, label="Open another study")


try:
    show_page()
    settle_server()
except state.CoreError as error:
    state.show_error(error)
