"""The router: one row per page, the shared settings in the sidebar, then the page."""

from pathlib import Path

import streamlit as st

from dashboard import controls, state
from dashboard.latency import settle_server

st.set_page_config(
    page_title="AWD Studio",
    page_icon=str(Path(__file__).parent / "icon.svg"),  # a named icon would be fetched
    layout="wide",
    initial_sidebar_state=330,  # pixels: four granularities stand in one line
)
# Figures need the width that the wide layout leaves empty at both sides.
st.html("<style>.stMainBlockContainer {padding-left: 2rem; padding-right: 2rem}</style>")
page = st.navigation(
    [
        st.Page(
            "views/interference.py", title="Interference", icon=":material/grid_on:", default=True
        ),
        st.Page("views/tune.py", title="Tune", icon=":material/tune:"),
        st.Page("views/ship.py", title="Ship", icon=":material/rocket_launch:"),
        st.Page("views/open.py", title="Open", icon=":material/folder_open:"),
    ],
    position="top",
)
try:
    study = state.open_study()
    study, setting = controls.sidebar(study)
    state.remember(study, setting)
    page.run()
    settle_server()
except state.CoreError as error:
    state.show_error(error)
