"""Every setting of this session in order: undo, redo, pins, and presets with a name.

A setting is remembered as the values of the sidebar's widgets, so that going back moves them.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from awd_core import AwdError, Study, files
from dashboard import state
from dashboard.state import Setting

KEYS = (
    "equalise",
    "awd",
    "preset",
    "granularity",
    "alpha_units",
    "alpha",
    "alpha_paper",
    "radius",
    "penalty",
    "until",
    "steps",
    "method",
    "apart",
    "block_factors",
)
PREFIXES = ("lambda", "knob_", "preset_")
MOST_ENTRIES = 100
MOST_PINS = 6

Values = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A setting, and the widgets that make it."""

    setting: Setting
    values: Values

    @property
    def words(self) -> str:
        """The setting in a line."""
        return self.setting.words


@dataclass
class Journal:
    """The settings of one session, and where in it the sliders stand.

    Attributes:
        study: Digest of the study; another study begins another journal.
        entries: In the order they were set.
        position: Of the present one.
        pins: Settings that are compared, by name.
    """

    study: str
    entries: list[Entry] = field(default_factory=list)
    position: int = -1
    pins: dict[str, Entry] = field(default_factory=dict)

    def note(self, entry: Entry) -> None:
        """What is set now; what was undone before it is dropped."""
        if self.entries and self.entries[self.position].setting == entry.setting:
            return
        self.entries = [*self.entries[: self.position + 1], entry][-MOST_ENTRIES:]
        self.position = len(self.entries) - 1

    @property
    def now(self) -> Entry:
        """The present entry."""
        return self.entries[self.position]


def journal(study: Study) -> Journal:
    """The journal of this session for this study."""
    found = st.session_state.get("journal")
    if found is None or found.study != study.collected_digest:
        found = Journal(study.collected_digest)
        st.session_state["journal"] = found
    return found


def note(study: Study, setting: Setting) -> Journal:
    """Keep the present setting."""
    found = journal(study)
    found.note(Entry(setting, _values()))
    return found


def step(found: Journal, by: int) -> None:
    """Go back or forth in the journal; for the callback of a button."""
    found.position = min(max(found.position + by, 0), len(found.entries) - 1)
    restore(found.now.values)


def restore(values: Values) -> None:
    """Move the widgets to these values; for a callback."""
    st.session_state.update(values)


def pin(found: Journal) -> None:
    """Keep the present setting for comparison, under the next free letter."""
    if any(entry.setting == found.now.setting for entry in found.pins.values()):
        return
    free = (letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in found.pins)
    if len(found.pins) < MOST_PINS:
        found.pins[next(free)] = found.now


def unpin(found: Journal, name: str) -> None:
    """Drop a pin."""
    found.pins.pop(name, None)


def _values() -> Values:
    return {
        key: value
        for key, value in st.session_state.items()
        if isinstance(key, str)
        and (key in KEYS or key.startswith(PREFIXES))
        and (value is None or isinstance(value, bool | int | float | str))
    }


# --- presets with a name: kept on purpose, so for everybody on this server -----------------------


def save_preset(name: str, values: Values) -> None:
    """Keep the widgets' values under a name.

    Raises:
        AwdError: The name cannot be one of a file.
    """
    if not re.fullmatch(r"[\w][\w .-]{0,60}", name):
        raise AwdError(
            "A preset cannot have this name",
            where="Name",
            received=repr(name),
            expected="letters, digits, spaces, dots and dashes",
        )
    file = files.home() / "presets" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1), encoding="utf-8")
    partial.rename(file)


def presets() -> dict[str, Values]:
    """Those that were kept, by name; a file that is none is left out."""
    found: dict[str, Values] = {}
    for file in sorted((files.home() / "presets").glob("*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            found[file.stem] = {
                key: value
                for key, value in values.items()
                if key in KEYS or key.startswith(PREFIXES)
            }
        except (OSError, ValueError, AttributeError):
            continue
    return found


def draw(found: Journal) -> None:
    """Undo, redo, pin, and behind them history and presets; at the foot of the sidebar."""
    st.subheader("Settings", divider="gray")
    with st.container(horizontal=True):
        st.button(
            "Undo",
            key="undo",
            icon=":material/undo:",
            disabled=found.position < 1,
            on_click=step,
            args=(found, -1),
        )
        st.button(
            "Redo",
            key="redo",
            icon=":material/redo:",
            disabled=found.position >= len(found.entries) - 1,
            on_click=step,
            args=(found, +1),
        )
        st.button(
            "Pin",
            key="pin",
            icon=":material/keep:",
            help="Keep this setting beside others: pages Tune and Compare. Loading the page anew"
            " forgets pins and history; the address holds the present setting alone.",
            disabled=len(found.pins) >= MOST_PINS,
            on_click=pin,
            args=(found,),
        )
    for name, entry in found.pins.items():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"**{name}** {entry.words}")
            st.button(
                "Back",
                key=f"back_{name}",
                type="tertiary",
                help="Set this again.",
                on_click=restore,
                args=(entry.values,),
            )
            st.button(
                "Drop", key=f"unpin_{name}", type="tertiary", on_click=unpin, args=(found, name)
            )
    if found.pins:
        st.caption(
            "Loading the page anew forgets pins and history. To keep a setting, give it a name"
            " below or share the address."
        )
    with st.expander("History and presets"):
        _named(found)
        _history(found)


def _named(found: Journal) -> None:
    kept = presets()
    chosen = st.selectbox(
        "Named presets", (None, *kept), format_func=lambda name: name or "none", key="named"
    )
    st.button(
        "Set it",
        key="set_named",
        disabled=chosen is None,
        on_click=restore,
        args=(kept.get(chosen or "", {}),),
    )
    name = st.text_input("Keep this setting as", key="name_of_preset", placeholder="a name")
    if st.button("Keep", key="keep_preset", disabled=not name.strip()):
        try:
            save_preset(name.strip(), found.now.values)
        except AwdError as error:
            state.show_error(error)
        else:
            st.rerun()


def _history(found: Journal) -> None:
    st.caption(f"{len(found.entries)} settings so far, newest first.")
    newest = list(enumerate(found.entries))[::-1][:12]
    for position, entry in newest:
        mark = "**now** " if position == found.position else ""
        st.button(
            f"{mark}{position + 1}. {entry.words}",
            key=f"history_{position}",
            type="tertiary",
            on_click=step,
            args=(found, position - found.position),
        )
