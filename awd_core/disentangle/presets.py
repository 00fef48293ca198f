"""Settings of AWD with a name and a reason."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from awd_core.disentangle.settings import (
    PAPER_ALPHA,
    PAPER_LR,
    PAPER_STEPS,
    RELATIVE_ALPHA,
    RELATIVE_LR,
    Settings,
)
from awd_core.errors import RecipeError, nearest
from awd_core.validation import as_recipe_error


@dataclass(frozen=True)
class Preset:
    """A named choice.

    Attributes:
        key: Its name in code and on the command line.
        title: Its name on a screen.
        explanation: What it is for, in a sentence.
        fields: The fields of `Settings` that it sets.
    """

    key: str
    title: str
    explanation: str
    fields: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """The settings."""
        return Settings(**self.fields)


_PRESETS = (
    Preset(
        "paper",
        "Paper",
        "One redundant vector for the whole model, plain descent with the numbers of the paper"
        " (arXiv 2411.18729): alpha 0.1, step 0.01, 300 steps.",
        {"alpha": PAPER_ALPHA, "lr": PAPER_LR, "steps": PAPER_STEPS},
    ),
    Preset(
        "row",
        "Row, the authors' numbers",
        "The authors' later code: every output row by itself, descent with momentum 0.9 and"
        " weight decay 1e-4; its steps are so short that delta stays small.",
        {
            "granularity": "row",
            "row_average": True,
            "alpha": 1e-6,
            "lr": 1e-5,
            "steps": 2000,
            "momentum": 0.9,
            "weight_decay": 1e-4,
        },
    ),
    Preset(
        "row-relative",
        "Row",
        "Every output row by itself, with steps and norm constraint relative to its own length:"
        " where AWD changes most.",
        {
            "granularity": "row",
            "alpha_relative": RELATIVE_ALPHA,
            "lr_relative": RELATIVE_LR,
            "steps": PAPER_STEPS,
        },
    ),
    Preset(
        "converged",
        "Converged",
        "The whole model, descended until no step makes progress; the best point met is kept.",
        {
            "alpha_relative": RELATIVE_ALPHA,
            "lr_relative": 0.05,
            "steps": 5000,
            "until": "converged",
        },
    ),
    Preset(
        "norm-bounded",
        "Norm-bounded",
        "No penalty but a bound: the least |cos| that a redundant vector of at most 0.3 times the"
        " mean norm of a task vector can reach.",
        {
            "penalty": "none",
            "radius": 0.3,
            "lr_relative": 0.05,
            "steps": 5000,
            "until": "converged",
        },
    ),
)

PRESETS: dict[str, Preset] = {preset.key: preset for preset in _PRESETS}


def preset_settings(key: str, changes: dict[str, Any]) -> Settings:
    """The settings of a preset, with some fields changed."""
    if key not in PRESETS:
        raise RecipeError(
            "Unknown preset", where="preset", received=key, remedy=nearest(key, tuple(PRESETS))
        )
    try:
        return Settings(**PRESETS[key].fields | changes)
    except ValidationError as error:
        raise as_recipe_error(error, Settings, f"preset {key}") from error
