"""What lets the page answer a slider soon: figures with the answer first, and a server at rest."""

import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import streamlit as st
from streamlit.errors import StreamlitAPIException

from awd_core import AwdError
from dashboard.state import Setting

FIRST, MOVED, PAINTED = "first", "moved", "painted"

# Measured in Chromium on two cores: what a browser needs to draw and paint the matrices.
SECONDS_TO_PAINT = 0.12
# The script's thread hands over to the one that sends its messages; Python's own value is 5 ms.
SECONDS_BEFORE_A_SWITCH = 0.0005


def follow(setting: Setting) -> None:
    """Draw what stands first on the page for this setting, then the page; for a callback.

    A run of the whole page makes the browser style every element anew and sends the sidebar before
    the figures; a run of the one fragment does neither.
    """
    st.session_state[MOVED] = setting
    with suppress(StreamlitAPIException):  # a page that draws nothing first runs as a whole
        st.rerun(FIRST)


def begin_run() -> None:
    """At the start of every run of the whole page, which reads its sliders itself."""
    st.session_state.pop(MOVED, None)


@st.fragment(key=FIRST)
def draw_first(draw: Callable[[Setting], object], setting: Setting) -> None:
    """Draw, and leave the browser time to paint before it is given the rest of the page.

    Args:
        draw: Draws for a setting.
        setting: As the page has it.
    """
    moved = st.session_state.pop(MOVED, None)
    try:
        draw(moved or setting)
    except AwdError:
        if moved is None:
            raise  # else the page itself says what is wrong
    if not st.session_state.pop(PAINTED, False):
        time.sleep(SECONDS_TO_PAINT)
    if moved is not None:
        st.session_state[PAINTED] = True
        st.rerun()


@st.cache_resource(show_spinner=False)
def settle_server() -> None:
    """Once for each server, when everything is loaded: what slows every answer is taken away.

    Streamlit collects all garbage after every run of a page and holds up its messages meanwhile:
    0.2 s with the objects of torch, numba and plotly. Frozen ones are not looked at again.
    """
    sys.setswitchinterval(SECONDS_BEFORE_A_SWITCH)
    gc.collect()
    gc.freeze()
