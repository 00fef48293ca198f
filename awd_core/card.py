"""The model card of a merge: what it is made of, how, and what AWD did."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from awd_core.merge import Plan


def model_card(plan: "Plan") -> str:
    """README.md with the metadata that the Hugging Face hub reads."""
    front = yaml.safe_dump(
        {
            "base_model": _base_models(plan),
            "base_model_relation": "merge",
            "library_name": "transformers",
            "tags": ["merge", plan.recipe.method]
            + (["adaptive-weight-disentanglement"] if plan.disentangled else []),
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
{_awd(plan)}
| expert | kind | coefficient |
|---|---|---|
{experts}

{_kept(plan)}`awd merge recipe.yaml OUT` repeats this merge; `provenance.json` holds the SHA-256
of every input and output, and `awd verify` checks them.

```yaml
{_without_paths(plan).rstrip()}
```
"""


def _base_models(plan: "Plan") -> list[str]:
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


def _without_paths(plan: "Plan") -> str:
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


def _awd(plan: "Plan") -> str:
    if plan.disentangled is None:
        return ""
    before, after = plan.disentangled.mean_absolute_cosine
    relative = plan.disentangled.relative_redundant_norm
    return f"""
Adaptive Weight Disentanglement (arXiv 2411.18729) came first: one redundant vector was subtracted
from every task vector at granularity `{plan.disentangled.settings.granularity}`. Mean |cos| between
task vectors over the whole model: {before:.4f} before, {after:.4f} after; the redundant vector has
{relative:.1%} of the mean norm of a task vector.
"""


def _kept(plan: "Plan") -> str:
    kept = [tensor.name for tensor in plan.tensors if tensor.name in plan.excluded]
    if not kept:
        return ""
    return f"{len(kept)} tensors were excluded by the recipe and are the base's.\n\n"
