"""What lets the page answer a slider soon: answers at hand, drawn first, by a server at rest."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from awd_core import AwdError, Settings, Study
from dashboard import state
from dashboard.state import Setting

FIRST, FOLLOWED, AHEAD, LOADED = "first", "followed", "ahead", "loaded"

# Measured in Chromium on two cores: what a browser needs to draw and paint the matrices.
SECONDS_TO_PAINT = 0.12
# What a new tab needs until they are painted, if it is not given a Plotly figure meanwhile: loading
# Plotly takes it another 1.6 s, in which it shows nothing.
SECONDS_TO_LOAD = 1.2
# The script's thread hands over to the one that sends its messages; Python's own value is 5 ms.
SECONDS_BEFORE_A_SWITCH = 0.0005
# Of which a solve takes about half a second; longer ones are not begun unasked.
MOST_GROUPS_AHEAD = 50_000


@dataclass(frozen=True)
class _First:
    """What stands first on the page: where, and what draws it for a setting."""

    place: DeltaGenerator
    html: Callable[[Setting], str]


def follow(setting: Setting) -> None:
    """Draw what stands first on the page for this setting; for a callback, so before the page.

    The page that comes next sends its sidebar before the figures and makes the browser look at
    every element anew.
    """
    first = st.session_state.get(FIRST)
    if first is None:
        return
    with suppress(AwdError):  # the page itself says what is wrong
        first.place.html(first.html(setting))
        time.sleep(SECONDS_TO_PAINT)
        st.session_state[FOLLOWED] = True


def begin_run() -> None:
    """At the start of every run of the whole page, which may be another page than before."""
    st.session_state.pop(FIRST, None)


def draw_first(html: Callable[[Setting], str], setting: Setting) -> None:
    """Draw, and leave the browser time to paint before it is given the rest of the page.

    Args:
        html: Makes it for a setting, now and when a slider is moved.
        setting: As the page has it.
    """
    place = st.empty()
    place.html(html(setting))
    st.session_state[FIRST] = _First(place, html)
    if not st.session_state.pop(FOLLOWED, False):
        time.sleep(SECONDS_TO_PAINT if LOADED in st.session_state else SECONDS_TO_LOAD)
    st.session_state[LOADED] = True


def solve_ahead(study: Study, setting: Setting, nearby: Sequence[Settings]) -> None:
    """Solve what the next drag may ask for while the user looks at this one; for a page's end.

    Args:
        study: The open study.
        setting: Where the sliders stand.
        nearby: Where they may stand next; what an earlier run asked for is dropped.
    """
    for waiting in st.session_state.pop(AHEAD, ()):
        waiting.cancel()
    if not nearby or len(state.solved(study, setting.disentangle).alpha) > MOST_GROUPS_AHEAD:
        return
    asked = [_solver().submit(state.solved, study, one) for one in nearby]
    st.session_state[AHEAD] = asked


@st.cache_resource(show_spinner=False)
def _solver() -> ThreadPoolExecutor:
    """One for all sessions, so that looking ahead takes no more than a thread of the server."""
    return ThreadPoolExecutor(1, "ahead")


@st.cache_resource(show_spinner=False)
def settle_server() -> None:
    """Once for each server, when everything is loaded: what slows every answer is taken away.

    Streamlit collects all garbage after every run of a page and holds up its messages meanwhile:
    0.2 s with the objects of torch, numba and plotly. Frozen ones are not looked at again.
    """
    sys.setswitchinterval(SECONDS_BEFORE_A_SWITCH)
    import_module("torch")  # later it would be loaded while somebody waits for a slider
    gc.collect()
    gc.freeze()
