"""What lets the page answer a slider soon: figures with the answer first, and a server at rest."""

import gc
import sys
import time

import streamlit as st

# Measured in Chromium on two cores: what a browser needs to draw and paint the matrices.
SECONDS_TO_PAINT = 0.12
# The script's thread hands over to the one that sends its messages; Python's own value is 5 ms.
SECONDS_BEFORE_A_SWITCH = 0.0005


def paint_first() -> None:
    """Leave the browser time to paint what was sent, before it is given the rest of the page."""
    time.sleep(SECONDS_TO_PAINT)


@st.cache_resource(show_spinner=False)
def settle_server() -> None:
    """Once for each server, when everything is loaded: what slows every answer is taken away.

    Streamlit collects all garbage after every run of a page and holds up its messages meanwhile:
    0.2 s with the objects of torch, numba and plotly. Frozen ones are not looked at again.
    """
    sys.setswitchinterval(SECONDS_BEFORE_A_SWITCH)
    gc.collect()
    gc.freeze()
