"""What a user chooses about AWD, checked; the `disentangle` part of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from awd_core.disentangle.gram_solver import Until

Granularity = Literal["model", "block", "tensor", "row", "spectral"]
# Those that every study with rows has; `spectral` needs a level of its own.
GRANULARITIES: tuple[Granularity, ...] = ("model", "block", "tensor", "row")

# Section 4.3 of arXiv 2411.18729, as quoted: alpha 0.1, beta 0.01, 300 iterations.
PAPER_ALPHA, PAPER_LR, PAPER_STEPS = 0.1, 0.01, 300
# Ours, for groups smaller than the model, whose norms the paper's numbers were not made for.
RELATIVE_ALPHA, RELATIVE_LR = 0.1, 0.01

# `l1` and `adam` leave the span of the task vectors: they need the weights and the dense solver.
AnyPenalty = Literal["l2", "l2_squared", "none", "l1"]
Optimizer = Literal["gradient_descent", "adam"]

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
            code), or `spectral`, every row of a matrix rotated into the left singular basis of
            the summed task vectors (ours). At `row` and `spectral`, a bias or a norm is one group
            of its own: single numbers have no direction.
        alpha: Norm constraint, 1 / length of a task vector.
        alpha_relative: The same as a fraction of alpha_crit.
        lr: Step size beta, squared length.
        lr_relative: The same in units of s^2.
        steps: Number of descent steps; with `converged` the most that are taken.
        penalty: `l2` (paper), `l2_squared`, `none`, or `l1` in the dense solver.
        momentum: 0 is the paper's plain descent.
        weight_decay: Inside the gradient; 0 is the paper's.
        until: `steps`: the iterate after `steps` steps, as the paper. `converged`: the best
            iterate, with a step that is halved whenever the loss makes no progress.
        radius: Hard norm constraint instead of a penalty: ||delta|| <= radius mean ||tau_k||.
        row_average: At granularity `row`, one loss for the m rows of a tensor as in the authors'
            later code: |cos| is averaged over rows while row norms are summed. Every row then
            descends with m alpha, lr / m and m weight_decay.
        optimizer: `gradient_descent` (paper), or `adam` in the dense solver.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    granularity: Granularity = "model"
    alpha: NotNegative | None = None
    alpha_relative: NotNegative | None = None
    lr: Positive | None = None
    lr_relative: Positive | None = None
    steps: Annotated[int, Field(ge=0, le=100_000)] = PAPER_STEPS
    penalty: AnyPenalty = "l2"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NotNegative = 0.0
    until: Until = "steps"
    radius: NotNegative | None = None
    row_average: bool = False
    optimizer: Optimizer = "gradient_descent"

    @model_validator(mode="after")
    def _one_scale_each(self) -> Self:
        for name in ("alpha", "lr"):
            relative = f"{name}_relative"
            if getattr(self, name) is not None and getattr(self, relative) is not None:
                raise ValueError(f"give either {name} (the paper's units) or {relative}, not both")
        return self

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        given = self.alpha is not None or self.alpha_relative is not None
        if self.radius is not None and (self.penalty != "none" or given):
            raise ValueError("radius is a hard constraint: use it with penalty none, without alpha")
        return self

    @model_validator(mode="after")
    def _row_average_is_absolute(self) -> Self:
        if self.row_average and (
            self.granularity != "row" or self.alpha is None or self.lr is None
        ):
            raise ValueError(
                "row_average belongs to granularity row, with alpha and lr in the paper's units"
            )
        return self

    @model_validator(mode="after")
    def _dense_is_plain(self) -> Self:
        if self.leaves_span and (self.until != "steps" or self.radius is not None):
            raise ValueError("penalty l1 and optimizer adam run for a number of steps, no radius")
        if self.leaves_span and self.granularity == "spectral":
            raise ValueError("granularity spectral is solved from a study, by plain descent")
        if self.leaves_span and self.row_average:
            raise ValueError("row_average is plain descent with penalty l2")
        if self.adam and self.momentum:
            raise ValueError("adam has a momentum of its own; leave momentum at 0")
        return self

    @property
    def adam(self) -> bool:
        """Whether Adam sets the steps."""
        return self.optimizer == "adam"

    @property
    def leaves_span(self) -> bool:
        """Whether delta is no combination of task vectors, so that the weights are needed."""
        return self.adam or self.penalty == "l1"

    @property
    def uses_paper_units(self) -> tuple[bool, bool]:
        """Whether alpha and lr are in the paper's units."""
        model = self.granularity == "model"
        l1 = self.penalty == "l1"
        return (
            self.alpha is not None or (model and not l1 and self.alpha_relative is None),
            self.lr is not None or (model and not self.adam and self.lr_relative is None),
        )

    @classmethod
    def preset(cls, key: str, **changes: Any) -> "Settings":
        """A preset, with some fields changed.

        Raises:
            RecipeError: There is no such preset, or a change has no meaning.
        """
        from awd_core.disentangle.presets import preset_settings

        return preset_settings(key, changes)
