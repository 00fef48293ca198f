"""The model card of a merge: what it is made of, how, and what AWD did."""

from pathlib import Path
from textwrap import fill

import yaml

from awd_core.disentangle import Disentangled, Settings
from awd_core.disentangle.settings import PAPER_ALPHA, RELATIVE_ALPHA
from awd_core.plan import Plan


def model_card(plan: Plan) -> str:
    """README.md with the metadata that the Hugging Face hub reads."""
    front = yaml.safe_dump(
        {
            "base_model": _base_models(plan),
            "base_model_relation": "merge",
            "library_name": "transformers",
            "tags": ["merge", plan.recipe.method]
            + (["adaptive-weight-disentanglement"] if plan.recipe.disentangle else []),
        },
        sort_keys=False,
    )
    experts = "\n".join(
        f"| {expert.label} | {expert.kind} | {coefficient:g} |"
        for expert, coefficient in zip(plan.experts, plan.coefficients, strict=True)
    )
    return f"""---
{front}---

# {plan.base.label} merged with {len(plan.experts)} experts

{plan.method.title}: ${plan.method.formula}$ ({plan.method.source}).
{_equalised(plan)}{_awd(plan)}
| expert | kind | coefficient |
|---|---|---|
{experts}
{_by_block(plan)}
{_kept(plan)}`awd merge recipe.yaml OUT` repeats this merge; `provenance.json` holds the SHA-256
of every input and output, and `awd verify` checks them.

```yaml
{_without_paths(plan).rstrip()}
```
"""


def _by_block(plan: Plan) -> str:
    """Blocks in which the coefficients are others."""
    factors = plan.recipe.block_factors
    if not factors:
        return ""
    listed = ", ".join(f"{block} × {factor:g}" for block, factor in factors.items())
    return f"\nIn some blocks every coefficient is multiplied: {listed}.\n"


def _base_models(plan: Plan) -> list[str]:
    """Hub ids where they are known; a path on this machine would mean nothing to a reader."""
    sources = [plan.recipe.base, *plan.recipe.experts]
    ids = [source.partition("@")[0] for source in sources if _is_hub_id(source)]
    for checkpoint in (plan.base, *plan.experts):
        named = checkpoint.config.get("base_model_name_or_path")
        if named and not str(named).startswith(("/", ".")) and str(named).count("/") == 1:
            ids.append(str(named))
    return list(dict.fromkeys(ids))


def _is_hub_id(source: str) -> bool:
    return ":" not in source and not Path(source).expanduser().exists()


def _without_paths(plan: Plan) -> str:
    shown = plan.recipe.model_copy(
        update={
            "base": _public_name(plan.recipe.base),
            "experts": tuple(_public_name(expert) for expert in plan.recipe.experts),
        }
    )
    return shown.to_yaml()


def _public_name(source: str) -> str:
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def _equalised(plan: Plan) -> str:
    if not plan.recipe.equalise_norms:
        return ""
    return "\nFirst every task vector was scaled to their mean length.\n"


def _awd(plan: Plan) -> str:
    settings = plan.recipe.disentangle
    if settings is None:
        return ""
    text = (
        "Adaptive Weight Disentanglement (arXiv 2411.18729) came first, at granularity"
        f" `{settings.granularity}`: {_SHARED[settings.granularity]} one redundant vector was"
        f" subtracted from every task vector. {_constraint(settings)} {_descent(settings)}"
        f"{_span(settings)}{_effect(plan.disentangled)}"
    )
    return f"\n{fill(text, 100, break_on_hyphens=False)}\n"


_SHARED = {
    "model": "for the whole model",
    "block": "for each transformer block",
    "tensor": "for each tensor",
    "row": "for each output row of a matrix, and for each bias or norm,",
    "spectral": "for each left singular direction of the summed task vectors of a matrix, and for"
    " each bias or norm,",
}
_PENALISED = {
    "l2": "its norm",
    "l2_squared": "the square of its norm",
    "l1": "the sum of its absolute values",
}
# What a relative alpha is a fraction of.
_UNITS = {
    "l2": "times alpha_crit, above which it is 0",
    "l2_squared": "times alpha_crit over the mean norm of a task vector",
    "l1": "times the steepest slope of the mean |cos| at 0",
}


def _constraint(settings: Settings) -> str:
    """What kept the redundant vector short."""
    if settings.radius is not None:
        return (
            f"Its norm was held to at most {settings.radius:g} times the mean norm of a task"
            " vector."
        )
    if settings.penalty == "none":
        return "Nothing but the number of steps kept it short: there was no penalty."
    if settings.uses_paper_units[0]:
        value = PAPER_ALPHA if settings.alpha is None else settings.alpha
        unit = "in the paper's units"
    else:
        value = RELATIVE_ALPHA if settings.alpha_relative is None else settings.alpha_relative
        unit = _UNITS[settings.penalty]
    return f"The penalty is alpha = {value:g} ({unit}) on {_PENALISED[settings.penalty]}."


def _descent(settings: Settings) -> str:
    """How it was found."""
    how = "Adam" if settings.adam else "gradient descent"
    if settings.momentum:
        how += f" with momentum {settings.momentum:g}"
    if settings.weight_decay:
        how += f"{' and' if settings.momentum else ' with'} weight decay"
        how += f" {settings.weight_decay:g}"
    if settings.until == "converged":
        return f"It was found by {how} until it converged, in at most {settings.steps} steps."
    return f"It was found in {settings.steps} steps of {how}."


def _span(settings: Settings) -> str:
    if not settings.leaves_span:
        return ""
    cause = "Adam" if settings.adam else "This penalty"
    return (
        f" {cause} leaves the span of the task vectors: the redundant vector is no weighted sum of"
        " them, and the merge no weighted task arithmetic."
    )


def _effect(disentangled: Disentangled | None) -> str:
    if disentangled is None:
        return ""
    before, after = disentangled.mean_absolute_cosine
    return (
        f" Mean |cos| between task vectors over the whole model: {before:.4f} before,"
        f" {after:.4f} after; the redundant vector has {disentangled.relative_redundant_norm:.1%}"
        " of the mean norm of a task vector."
    )


def _kept(plan: Plan) -> str:
    kept = [tensor.name for tensor in plan.tensors if tensor.name in plan.excluded]
    if not kept:
        return ""
    return f"{len(kept)} tensors were excluded by the recipe and are the base's.\n\n"
