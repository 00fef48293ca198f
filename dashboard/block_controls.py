"""lambda by block: set, add, multiply over a range of blocks, or suggested by conflict."""

import math
from collections.abc import Callable

import numpy as np
import streamlit as st

import awd_core as awd
from analysis import block_factors
from analysis.view import View
from awd_core import AwdError, Study
from dashboard import state

KEY = "block_factors"
OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "set": lambda old, value: value,
    "add": lambda old, value: old + value,
    "multiply": lambda old, value: old * value,
}
HELP = """
A factor of λ for some blocks, written as `block 3=0.8; embedding=0`. Blocks that are not named have
1. **Suggest by conflict**: every block then keeps the same share of the experts' own steps, so
that directions counted twice are turned down and those that cancel are turned up.
"""

Factors = tuple[tuple[str, float], ...]


def block_controls(study: Study) -> Factors:
    """Draw them and read them; what cannot be read is said at the field and multiplies nothing."""
    factors, error = _readable(_written(), study.blocks)
    with st.expander("λ by block", expanded=error is not None):
        st.text_input(
            "Factors",
            key=KEY,
            placeholder="1 in every block",
            help=HELP,
            bind="query-params",
        )
        if error is not None:
            state.show_error(error)
            st.caption("Until it can be read, λ is the same in every block.")
        first, last = st.select_slider(
            "Blocks", study.blocks, value=(study.blocks[0], study.blocks[-1]), key="factor_blocks"
        )
        operation = st.segmented_control(
            "Do",
            tuple(OPERATIONS),
            default="set",
            required=True,
            key="factor_operation",
        )
        value = st.number_input("Value", -2.0, 4.0, 1.0, 0.05, key="factor_value")
        start, stop = study.blocks.index(first), study.blocks.index(last)
        changed = changed_by(factors, study.blocks[start : stop + 1], operation or "set", value)
        with st.container(horizontal=True):
            st.button("Apply", key="factor_apply", on_click=_set, args=(changed,))
            st.button("All 1", key="factor_reset", on_click=_set, args=({},))
        st.button(
            "Suggest by conflict",
            key="factor_suggest",
            on_click=lambda: _set(suggestion(study)),
            disabled=study.n_experts < 2,
        )
    return tuple((block, factor) for block, factor in factors.items() if factor != 1.0)


def _written() -> str:
    """What the field says; before it is drawn for the first time, what the link says."""
    return st.session_state.get(KEY, st.query_params.get(KEY, ""))


def _readable(text: str, blocks: tuple[str, ...]) -> tuple[dict[str, float], AwdError | None]:
    """The factors, or why there are none."""
    try:
        return read(text, blocks), None
    except AwdError as error:
        return {}, error


def changed_by(
    factors: dict[str, float], blocks: tuple[str, ...], operation: str, value: float
) -> dict[str, float]:
    """The factors after one operation on some blocks."""
    act = OPERATIONS[operation]
    return factors | {block: round(act(factors.get(block, 1.0), value), 6) for block in blocks}


def suggestion(study: Study) -> dict[str, float]:
    """What the task vectors as they are suggest."""
    plain = awd.no_redundancy(study)
    return block_factors.suggested(View(study, plain, np.ones(study.n_experts)))


def read(text: str, blocks: tuple[str, ...]) -> dict[str, float]:
    """`block 3=0.8; embedding=0` as factors.

    Raises:
        AwdError: It says something else.
    """
    factors: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, number = part.rpartition("=")
        block, factor = name.strip(), _number(number)
        if block not in blocks or not math.isfinite(factor):
            raise AwdError(
                "The factors of λ by block cannot be read",
                where="λ by block",
                received=part,
                expected=f"BLOCK=NUMBER with a block such as {blocks[0]!r}",
            )
        factors[block] = factor
    return factors


def _number(text: str) -> float:
    """A number; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def write(factors: dict[str, float]) -> str:
    """The same as text; blocks with 1 are left out."""
    return "; ".join(f"{block}={factor:g}" for block, factor in factors.items() if factor != 1.0)


def _set(factors: dict[str, float]) -> None:
    st.session_state[KEY] = write(factors)
