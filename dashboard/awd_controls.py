"""The part of the sidebar that decides the redundant vector: preset, granularity, constraint."""

from bisect import bisect
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import streamlit as st

from analysis.words import group_noun
from awd_core import Settings, Study
from awd_core.disentangle import PRESETS, Granularity, Preset
from awd_core.disentangle.groups import granularities
from awd_core.disentangle.settings import PAPER_ALPHA, PAPER_STEPS, RELATIVE_ALPHA, RELATIVE_LR
from dashboard import state
from dashboard.latency import follow

CRITICAL = 1.0
# Fractions of alpha_crit: three to a decade, closer together where AWD stops acting.
FRACTIONS = (
    0.0,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.9,
    CRITICAL,
    2.0,
)
# alpha in the paper's units; the first is that of the authors' later code.
ALPHAS = (1e-6, 0.0, PAPER_ALPHA, *np.geomspace(1e-4, 10, 31).round(5).tolist())
RADII = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
# The field of `Settings` that a slider of the norm constraint sets, and its positions.
CONSTRAINTS = {"alpha_relative": FRACTIONS, "alpha": ALPHAS, "radius": RADII}
STEPS = (10, 30, 100, 300, 1000, 2000, 3000, 5000)
RELATIVE, PAPER, BOUND = "× α_crit", "paper's units", "bound r"
PENALTIES = {"l2": "‖δ‖", "l2_squared": "‖δ‖²", "none": "none"}
UNTIL = {"steps": "after steps", "converged": "converged"}

START = Preset(
    "start",
    "Start values",
    "What the app opens with: the whole model, 0.1 α_crit, 300 steps.",
    {"alpha_relative": RELATIVE_ALPHA, "lr_relative": RELATIVE_LR, "steps": PAPER_STEPS},
)
OFFERED = {preset.key: preset for preset in (START, *PRESETS.values())}
# Fields of a preset that have no slider.
UNSEEN = ("lr", "lr_relative", "momentum", "weight_decay", "row_average")

PRESET_HELP = "Sets what is below; change what you like afterwards.\n" + "\n".join(
    f"- **{preset.title}**: {preset.explanation}" for preset in OFFERED.values()
)
GRANULARITY_HELP = """
What shares the coefficients of one redundant vector δ:
- **model**: one δ for everything, the paper as quoted; AWD then only re-weights experts
- **block**: one for each transformer block
- **tensor**: one for each named parameter
- **row**: one for each output row of a matrix (the authors' later code)
- **spectral**: one for each direction of the summed task vectors (ours; where the study has it)
"""
CONSTRAINT_HELP = """
What keeps δ short: a penalty α, as a multiple of α_crit or in the paper's units, or a hard bound
‖δ‖ ≤ r · mean ‖τ‖ instead of a penalty.
"""
ALPHA_HELP = """
The norm constraint α: how much a long redundant vector costs. The loss is the mean |cos| between
the task vectors after subtraction, plus α‖δ‖. At **α_crit** and above, δ stays 0 and AWD does
nothing; at 0 only orthogonality counts. The **knee** is the best bargain between |cos| and ‖δ‖;
page Tune draws the path.
"""
RADIUS_HELP = """
δ is at most r times as long as the mean task vector (of its group); within that, the mean |cos| is
made as small as it gets.
"""
PENALTY_HELP = """
What α costs: the norm of δ (the paper), its square, or nothing. The square never holds δ at 0;
without a penalty only the steps keep δ short.
"""
UNTIL_HELP = """
The paper takes a fixed number of steps from δ = 0. **Converged** descends until no step makes
progress, with the number of steps as the limit, and keeps the best point.
"""


@dataclass(frozen=True)
class _Shape:
    """What is chosen before any number: they decide which steps suit."""

    granularity: Granularity
    constraint: str
    until: str


def awd_controls(study: Study, collected: Study) -> Settings | None:
    """Draw them and read them; None is AWD off.

    Args:
        study: What is looked at, maybe of equalised norms.
        collected: The same study as it was collected, with every granularity that it has.
    """
    on = st.toggle("Subtract it from every task vector", value=True, key="awd", bind="query-params")
    preset = _preset(study, disabled=not on)
    at_start = _widget_values(preset.settings)
    offered = granularities(study)
    if st.session_state.get("granularity") not in (None, *offered):
        # The address follows what is set here; a value that is only forgotten would stay in it.
        st.session_state["granularity"] = at_start["granularity"]
    granularity = st.segmented_control(
        "Granularity",
        offered,
        default=at_start["granularity"],
        required=True,
        key="granularity",
        help=GRANULARITY_HELP,
        disabled=not on,
        bind="query-params",
    )
    _say_lost([one for one in granularities(collected) if one not in offered])
    constraint = st.segmented_control(
        "Norm constraint",
        (RELATIVE, PAPER, BOUND),
        default=at_start["alpha_units"],
        required=True,
        key="alpha_units",
        help=CONSTRAINT_HELP,
        disabled=not on,
        bind="query-params",
    )
    bounded = constraint == BOUND
    place = st.container()
    with st.expander("Steps" if bounded else "Penalty, steps"):
        penalty = "none" if bounded else _penalty(at_start, disabled=not on)
        until, steps = _steps(at_start, disabled=not on)
    shape = _Shape(
        cast(Granularity, granularity or at_start["granularity"]),
        constraint or at_start["alpha_units"],
        until,
    )
    with place:
        fields = _constraint(study, shape, penalty, at_start, disabled=not on)
    if not on:
        return None
    return Settings.model_validate(
        {
            "granularity": shape.granularity,
            "penalty": penalty,
            "until": until,
            "steps": steps,
            **_unseen(preset, shape),
            **fields,
        }
    )


def _say_lost(granularities: list[Granularity]) -> None:
    for granularity in granularities:
        st.caption(f"Granularity {granularity} is not possible with equalised norms.")


def _preset(study: Study, *, disabled: bool) -> Preset:
    fitting = [
        key
        for key, preset in OFFERED.items()
        if preset.settings.granularity in granularities(study)
    ]
    key = st.selectbox(
        "Preset",
        fitting,
        format_func=lambda key: OFFERED[key].title,
        key="preset",
        help=PRESET_HELP,
        on_change=_take_preset,
        disabled=disabled,
        bind="query-params",
    )
    return OFFERED[key]


def _take_preset() -> None:
    """Set every slider to the values of the chosen preset."""
    chosen = OFFERED[st.session_state["preset"]]
    st.session_state.update(_widget_values(chosen.settings))


def _widget_values(settings: Settings) -> dict[str, Any]:
    """The value of every widget under its key; what the settings leave open has its default."""
    values: dict[str, Any] = {
        "granularity": settings.granularity,
        "alpha_units": RELATIVE,
        "alpha": RELATIVE_ALPHA,
        "alpha_paper": PAPER_ALPHA,
        "radius": PRESETS["norm-bounded"].fields["radius"],
        "penalty": settings.penalty,
        "until": settings.until,
        "steps": settings.steps,
    }
    if settings.radius is not None:
        values |= {"alpha_units": BOUND, "radius": settings.radius, "penalty": "l2"}
    elif settings.alpha is not None:
        values |= {"alpha_units": PAPER, "alpha_paper": settings.alpha}
    elif settings.alpha_relative is not None:
        values |= {"alpha": settings.alpha_relative}
    return values


def _unseen(preset: Preset, shape: _Shape) -> dict[str, Any]:
    """Step length and the like: the preset's, as long as its shape is kept; else what suits."""
    own = _widget_values(preset.settings)
    if shape == _Shape(own["granularity"], own["alpha_units"], own["until"]):
        return {name: preset.fields[name] for name in UNSEEN if name in preset.fields}
    if shape.until == "converged":
        return {"lr_relative": PRESETS["converged"].fields["lr_relative"]}
    return {} if shape.constraint == PAPER else {"lr_relative": RELATIVE_LR}


def _penalty(at_start: dict[str, Any], *, disabled: bool) -> str:
    penalty = st.segmented_control(
        "Penalty",
        tuple(PENALTIES),
        default=at_start["penalty"],
        required=True,
        format_func=PENALTIES.__getitem__,
        key="penalty",
        help=PENALTY_HELP,
        disabled=disabled,
        bind="query-params",
    )
    return penalty or at_start["penalty"]


def _steps(at_start: dict[str, Any], *, disabled: bool) -> tuple[str, int]:
    until = st.segmented_control(
        "Stop",
        tuple(UNTIL),
        default=at_start["until"],
        required=True,
        format_func=UNTIL.__getitem__,
        key="until",
        help=UNTIL_HELP,
        disabled=disabled,
        bind="query-params",
    )
    steps = st.select_slider(
        "At most this many steps" if until == "converged" else "Descent steps",
        STEPS,
        value=at_start["steps"],
        key="steps",
        help="Steps of gradient descent from δ = 0. The paper takes 300.",
        disabled=disabled,
        bind="query-params",
    )
    return until or at_start["until"], steps


def _constraint(
    study: Study, shape: _Shape, penalty: str, at_start: dict[str, Any], *, disabled: bool
) -> dict[str, float]:
    """The slider of the norm constraint, and the fields of `Settings` that it means."""
    if shape.constraint == BOUND:
        radius = st.select_slider(
            "Norm bound r",
            RADII,
            value=at_start["radius"],
            key="radius",
            on_change=_follow,
            args=("radius", "radius"),
            help=RADIUS_HELP,
            disabled=disabled,
            bind="query-params",
        )
        group = "" if shape.granularity == "model" else f" of its {group_noun(shape.granularity)}"
        st.caption(f"‖δ‖ is at most {radius:g} of the mean ‖τ‖{group}; there is no penalty.")
        return {"radius": float(radius)}
    free = penalty == "none"
    critical = _critical_alphas(study, shape.granularity)
    middle = float(np.median(critical)) if len(critical) else 0.0
    if shape.constraint == PAPER:
        alphas = sorted({*ALPHAS, middle})
        state.keep_near("alpha_paper", alphas)
        alpha = st.select_slider(
            "Norm constraint α",
            alphas,
            value=at_start["alpha_paper"],
            format_func=lambda value: f"{value:.3g}" + (" = α_crit" if value == middle else ""),
            key="alpha_paper",
            on_change=_follow,
            args=("alpha_paper", "alpha"),
            help=ALPHA_HELP,
            disabled=disabled or free,
            bind="query-params",
        )
        _say_critical(study, shape, penalty, critical)
        return {} if free else {"alpha": float(alpha)}
    knee = _knee(study)
    fractions = sorted({*FRACTIONS, knee or 0.0})
    state.keep_near("alpha", fractions)
    fraction = st.select_slider(
        "Norm constraint α",
        fractions,
        value=at_start["alpha"],
        format_func=lambda value: _multiple_of_critical(value, knee),
        key="alpha",
        on_change=_follow,
        args=("alpha", "alpha_relative"),
        help=ALPHA_HELP,
        disabled=disabled or free,
        bind="query-params",
    )
    _say_critical(study, shape, penalty, critical, float(fraction))
    return {} if free else {"alpha_relative": float(fraction)}


def _follow(key: str, field: str) -> None:
    """The figures follow a slider before anything else does."""
    _, setting = state.current()
    if setting.disentangle is not None:
        moved = _moved(setting.disentangle, field, float(st.session_state[key]))
        follow(replace(setting, disentangle=moved))


def _moved(settings: Settings, field: str, value: float) -> Settings:
    return Settings.model_validate(settings.model_dump(exclude_unset=True) | {field: value})


def nearby(settings: Settings | None) -> tuple[Settings, ...]:
    """Where the next drag of the norm constraint may end, the nearest first."""
    if settings is None:
        return ()
    for field, options in CONSTRAINTS.items():
        value = getattr(settings, field)
        if value is not None:
            others = sorted(set(options) - {value})
            at = bisect(others, value)
            below, above = others[:at][::-1], others[at:]
            near = [one for pair in zip_longest(below[:2], above[:2]) for one in pair]
            return tuple(_moved(settings, field, one) for one in near if one is not None)
    return ()


def _critical_alphas(study: Study, granularity: Granularity) -> np.ndarray:
    solved = state.solved(study, Settings(granularity=granularity, steps=0))
    return solved.critical_alpha[solved.critical_alpha > 0]


def _say_critical(
    study: Study,
    shape: _Shape,
    penalty: str,
    critical: np.ndarray,
    fraction: float | None = None,
) -> None:
    if not len(critical):
        st.caption("All task vectors are orthogonal already: there is nothing to disentangle.")
    elif penalty == "none":
        st.caption("Without a penalty α plays no part: only the steps keep δ short.")
    elif penalty == "l2_squared":
        st.caption("With the squared norm, α is 1/length²; its multiples are of α_crit / mean ‖τ‖.")
    elif shape.granularity == "model":
        st.caption(_critical_and_knee(study, float(critical[0]), fraction))
    else:
        st.caption(
            f"Each {group_noun(shape.granularity)} has its own α_crit: {critical.min():.3g} to"
            f" {critical.max():.3g}, median {np.median(critical):.3g}, in the paper's units."
            + (" The knee is that of the whole model." if fraction is not None else "")
        )


def _knee(study: Study) -> float | None:
    """The knee of the path of the whole model over alpha_crit; None where there is none."""
    path = state.alpha_path(study)
    if path.knee is None:
        return None
    return float(f"{path.alpha[path.knee] / path.critical:.2g}")


def _multiple_of_critical(value: float, knee: float | None) -> str:
    said = "α_crit" if value == CRITICAL else f"{value:g} α_crit"
    return f"{said} (knee)" if value == knee else said


def _critical_and_knee(study: Study, critical: float, fraction: float | None) -> str:
    path = state.alpha_path(study)
    knee = None if path.knee is None else float(path.alpha[path.knee])
    if fraction is None:
        at = "" if knee is None else f", knee of the path at {knee:.3g}"
        return f"α_crit = {critical:.3g}{at}."
    at = "" if knee is None else f", knee of the path at {knee / critical:.2g} α_crit"
    return f"α_crit = {critical:.3g}{at}; α = {fraction * critical:.3g} in the paper's units."
