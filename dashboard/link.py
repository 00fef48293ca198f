"""What a link asked for and no control took: it is said once, or defaults would pass for it."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import awd_core as awd
from analysis.exhibits import EXHIBITS
from dashboard.awd_controls import OFFERED, PENALTIES, UNTIL
from dashboard.close_ups import TITLES
from dashboard.look import SHOWN
from dashboard.state import LINKED_STUDY

ASKED = "asked_by_link"
# Addresses name a choice as its control does; other choices are named by their values.
WORDS: dict[str, Callable[[Any], str]] = {
    "preset": lambda key: OFFERED[key].title,
    "penalty": PENALTIES.__getitem__,
    "until": UNTIL.__getitem__,
    "alpha": lambda value: f"{value:g} α_crit",
    "method": lambda key: awd.find_method(key).title,
    "measure": lambda key: SHOWN[key].title,
    "when": lambda when: f"{when} AWD",
    "close_up": TITLES.__getitem__,
    "density": lambda share: f"{share:.0%}",
    "slide": {one.key: one.title for one in EXHIBITS}.__getitem__,
}


def remember() -> None:
    """Keep what the link of this session asks for; before any control is drawn."""
    if ASKED not in st.session_state:
        asked = {key: st.query_params.get_all(key) for key in st.query_params}
        asked.pop(LINKED_STUDY, None)  # a study that is not here has a page of its own
        st.session_state[ASKED] = asked


def tell(place: DeltaGenerator) -> None:
    """Say once what was not taken; after every control was drawn, which drops it."""
    asked, st.session_state[ASKED] = st.session_state[ASKED], {}
    refused = [
        f"`{key}={value}`" for key, values in asked.items() for value in _refused(key, values)
    ]
    if refused:
        place.warning(
            f"The link asks for what is not offered here: {', '.join(refused)}. These controls"
            " stand at values of their own.",
            icon=":material/link_off:",
        )


def _refused(key: str, values: list[str]) -> list[str]:
    kept = st.query_params.get_all(key)
    if not kept and _is_set(key, values[-1]):
        return []
    return [value for value in values if value not in kept]


def _is_set(key: str, asked: str) -> bool:
    """Whether a control stands at what was asked for: a default, which no address holds."""
    if key not in st.session_state:
        return False
    value = st.session_state[key]
    words = {str(value).casefold()}
    if key in WORDS:
        words.add(WORDS[key](value).casefold())
    return asked.casefold() in words or _is_number(asked, value)


def _is_number(asked: str, value: object) -> bool:
    try:
        return float(asked) == value
    except ValueError:
        return False
