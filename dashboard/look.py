"""What page Interference looks at: which measure, which part of the model, which experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis import tables
from analysis.measure import Measure
from analysis.measures import MEASURES
from analysis.overview import Rows, cell, in_rows, rows_for
from analysis.view import Scope, View
from awd_core import Study
from dashboard import state

BEFORE, AFTER = "_before", "_after"


@dataclass(frozen=True)
class Shown:
    """A measure before and after AWD, or one that knows no such difference.

    Attributes:
        key: Without `_before` and `_after`.
        before: As it is without AWD.
        after: With AWD; None where there is only one.
    """

    key: str
    before: Measure
    after: Measure | None = None

    @property
    def title(self) -> str:
        """Its name, whatever is shown of it."""
        return (
            self.before.title.replace(" of task vectors", "") if self.after else self.before.title
        )

    @property
    def headings(self) -> tuple[tuple[str, Measure], ...]:
        """What stands above each of its pictures."""
        if self.after is None:
            return ((self.title, self.before),)
        return (("before AWD", self.before), ("after AWD", self.after))


def _shown() -> dict[str, Shown]:
    by_key = {measure.key: measure for measure in MEASURES if "block" in measure.scopes}
    found = {}
    for key, measure in by_key.items():
        if key.endswith(BEFORE):
            short = key.removesuffix(BEFORE)
            found[short] = Shown(short, measure, by_key.get(short + AFTER))
        elif not key.endswith(AFTER):
            found[key] = Shown(key, measure)
    return found


SHOWN = _shown()


def offered(study: Study) -> dict[str, Shown]:
    """The measures that this study holds what they are made from."""
    return {key: shown for key, shown in SHOWN.items() if shown.before.available(study)}


COSINE = "cosine"


@dataclass(frozen=True)
class Look:
    """The measure, its rows, and whether the overview shows it after AWD."""

    measure: Shown
    rows: Rows
    after: bool

    @property
    def pictured(self) -> Shown:
        """What the overview is of: at kinds the size of a signed measure."""
        before, after = self.measure.before, self.measure.after
        return Shown(
            self.measure.key,
            in_rows(before, self.rows),
            None if after is None else in_rows(after, self.rows),
        )

    @property
    def shown(self) -> Measure:
        """What the overview shows, before or after AWD."""
        pictured = self.pictured
        after = pictured.after
        return after if self.after and after is not None else pictured.before

    @property
    def pair_measure(self) -> Shown:
        """What the matrices show: this measure, or the cosine where it is no measure of pairs."""
        return self.measure if self.measure.before.per == "pair" else SHOWN[COSINE]


def chosen_look(study: Study) -> Look:
    """Draw the controls of the overview and read them."""
    measures = tuple(offered(study))
    state.forget_unless("measure", measures)
    key = st.selectbox(
        "Measure",
        measures,
        format_func=lambda key: SHOWN[key].title,
        key="measure",
        help="Type to search. Formula, unit and source stand below the picture.",
        bind="query-params",
    )
    measure = SHOWN[key]
    first, second = st.columns(2)
    possible = rows_for(measure.before)
    if st.session_state.get("rows") not in (None, *possible):
        st.session_state["rows"] = possible[0]
    rows = first.segmented_control(
        "Rows",
        possible,
        default=possible[0],
        required=True,
        key="rows",
        help="Every pair of experts, every expert, or every kind of tensor, by block. At kinds a"
        " number of pairs or experts is averaged over them, the cosine without its sign: |cos|.",
        bind="query-params",
    )
    when = "before"
    if measure.after is not None:
        when = second.segmented_control(
            "Task vectors",
            ("before", "after"),
            default="before",
            required=True,
            format_func=lambda when: f"{when} AWD",
            key="when",
            bind="query-params",
        )
    return Look(measure, cast(Rows, rows or possible[0]), when == "after")


@dataclass(frozen=True)
class Part:
    """The part of the model that the matrices show.

    Attributes:
        block: A block.
        kind: One kind of tensor in it; None for all.
        tensor: One tensor of it; None for all.
    """

    block: str
    kind: str | None = None
    tensor: str | None = None

    @property
    def scope(self) -> Scope:
        """The scope that has this part."""
        return "tensor" if self.tensor else "cell" if self.kind else "block"

    @property
    def label(self) -> str:
        """Its label there."""
        return self.tensor or (cell(self.block, self.kind) if self.kind else self.block)

    @property
    def around(self) -> str:
        """What a tensor was chosen from."""
        return replace(self, tensor=None).label

    @property
    def words(self) -> str:
        """What it is called on the page."""
        return self.label


def chosen_part(study: Study, view: View, place: DeltaGenerator) -> Part:
    """Draw the block scrubber, and the choice of a kind at its place; read what is looked at."""
    state.forget_unless("block", study.blocks)
    block = st.select_slider(
        "Block",
        study.blocks,
        value=strongest_block(view),
        key="block",
        help="Arrow keys move it. Or click a cell of the heatmap.",
        bind="query-params",
    )
    kinds = _kinds(view, str(block))
    state.forget_unless("kind", kinds)
    kind = place.selectbox(
        "Kind of tensor",
        kinds,
        index=None,
        placeholder="all of the block",
        key="kind",
        bind="query-params",
    )
    inside = {t.name for t in study.tensors if t.block == block and kind in (None, t.kind)}
    if state.chosen_tensor() not in inside:
        state.choose_tensor(None)  # the address would go on naming a tensor of another block
    return Part(str(block), kind, state.chosen_tensor())


def _kinds(view: View, block: str) -> tuple[str, ...]:
    """The kinds of tensor that two experts move in a block."""
    table = tables.tensor_table(view, block).dropna(subset=["cosine_before"])
    return tuple(dict.fromkeys(table["kind"]))


def strongest_block(view: View) -> str:
    """The block with the largest |cos| of any pair."""
    pairs = tables.pair_by_block(view)
    return str(pairs.loc[pairs["cosine"].abs().idxmax(), "block"])


def chosen_experts(study: Study, place: DeltaGenerator) -> list[str]:
    """The experts that are shown, in the study's order; all when fewer than two are chosen."""
    state.forget_unless("experts", study.experts)
    if study.n_experts < 3:
        return list(study.experts)
    chosen: Sequence[str] = place.multiselect(
        "Experts shown", study.experts, key="experts", placeholder="all", bind="query-params"
    )
    kept = [expert for expert in study.experts if expert in chosen]
    if len(kept) == 1:
        place.caption(f"{kept[0]} alone has no pair: all experts are shown.")
    return kept if len(kept) > 1 else list(study.experts)
