"""What a user chooses about AWD, checked; the `disentangle` part of a recipe."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from awd_core.disentangle.objective import Penalty

Granularity = Literal["model", "block", "tensor", "row"]
GRANULARITIES: tuple[Granularity, ...] = ("model", "block", "tensor", "row")

# Section 4.3 of arXiv 2411.18729, as quoted: alpha 0.1, beta 0.01, 300 iterations.
PAPER_ALPHA, PAPER_LR, PAPER_STEPS = 0.1, 0.01, 300
# Ours, for groups smaller than the model, whose norms the paper's numbers were not made for.
RELATIVE_ALPHA, RELATIVE_LR = 0.1, 0.01

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """How the redundant vector is found.

    `alpha` and `lr` are in the paper's units, the same for every group. `alpha_relative` is a
    fraction of the group's alpha_crit (at 1 and above delta stays 0 with penalty l2) and
    `lr_relative` is in units of s^2, s = mean ||tau_k|| of the group. What is left out takes the
    paper's value at granularity `model`, and 0.1 alpha_crit and 0.01 s^2 below it, where the
    paper's step diverges for groups of small norm.

    Attributes:
        granularity: What shares one redundant vector's coefficients: `model` (the paper as
            quoted), `block`, `tensor`, or `row`, every output row of a matrix (the authors' later
            code). At `row`, a bias or a norm is one group of its own: single numbers have no
            direction.
        alpha: Norm constraint, 1 / length of a task vector.
        alpha_relative: The same as a fraction of alpha_crit.
        lr: Step size beta, squared length.
        lr_relative: The same in units of s^2.
        steps: Number of descent steps.
        penalty: `l2` (paper), `l2_squared` or `none`.
        momentum: 0 is the paper's plain descent.
        weight_decay: Inside the gradient; 0 is the paper's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    granularity: Granularity = "model"
    alpha: NotNegative | None = None
    alpha_relative: NotNegative | None = None
    lr: Positive | None = None
    lr_relative: Positive | None = None
    steps: Annotated[int, Field(ge=0, le=100_000)] = PAPER_STEPS
    penalty: Penalty = "l2"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NotNegative = 0.0

    @model_validator(mode="after")
    def _one_scale_each(self) -> Self:
        for name in ("alpha", "lr"):
            relative = f"{name}_relative"
            if getattr(self, name) is not None and getattr(self, relative) is not None:
                raise ValueError(f"give either {name} (the paper's units) or {relative}, not both")
        return self

    @property
    def uses_paper_units(self) -> tuple[bool, bool]:
        """Whether alpha and lr are in the paper's units."""
        model = self.granularity == "model"
        return (
            self.alpha is not None or (model and self.alpha_relative is None),
            self.lr is not None or (model and self.lr_relative is None),
        )
