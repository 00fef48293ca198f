"""Which tensors a pattern means, and what experts are called."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from awd_core.checkpoints import Checkpoint
from awd_core.errors import RecipeError


def matching(
    names: Sequence[str], patterns: Sequence[str], field: str = "exclude"
) -> frozenset[str]:
    """Names that match any pattern of a field of the recipe, shell style.

    Raises:
        RecipeError: A pattern matches nothing, so that a slip of the pen is not silent.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not hits:
            raise RecipeError(
                f"A pattern under `{field}` matches no tensor",
                where=field,
                received=pattern,
                expected=f"a pattern such as {names[0]!r} or '*.bias'" if names else None,
                remedy="Correct or remove it.",
            )
        found |= hits
    return frozenset(found)


def with_distinct_labels(experts: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """The experts, with `-2`, `-3`, ... added to labels that stand twice."""
    own = {expert.label for expert in experts}
    taken: set[str] = set()
    renamed = []
    for expert in experts:
        label, count = expert.label, 1
        while label in taken or (count > 1 and label in own):
            count += 1
            label = f"{expert.label}-{count}"
        taken.add(label)
        renamed.append(expert if count == 1 else replace(expert, label=label))
    return tuple(renamed)
