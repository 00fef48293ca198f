"""Accuracy of recipes, merged folders and single checkpoints on the tasks of the zoo."""

from collections.abc import Sequence
from pathlib import Path

from awd_core.checkpoints import Checkpoint
from awd_core.errors import AwdError
from awd_core.evaluation.accuracy import TaskAccuracy, evaluate
from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.tasks import Task
from awd_core.merge import merged_state, plan_merge
from awd_core.progress import CancelFn
from awd_core.recipe import Recipe
from awd_core.study import Study


def merged_encoder(
    recipe: Recipe,
    *,
    study: Study | None = None,
    checkpoints: tuple[Checkpoint, Sequence[Checkpoint]] | None = None,
    cancel: CancelFn | None = None,
) -> Encoder:
    """The encoder a recipe gives, merged in memory: the bits that `merge` would write.

    Raises:
        AwdError: The recipe cannot be merged, or its base is not a text encoder.
    """
    plan = plan_merge(recipe, study=study, checkpoints=checkpoints, cancel=cancel)
    require_text_encoder(plan.base.path)
    return Encoder.from_state(plan.base.path, merged_state(plan, cancel))


def evaluate_recipe(
    recipe: Recipe,
    tasks: Sequence[Task],
    split: str,
    limit: int | None = None,
    *,
    study: Study | None = None,
    checkpoints: tuple[Checkpoint, Sequence[Checkpoint]] | None = None,
    cancel: CancelFn | None = None,
) -> tuple[TaskAccuracy, ...]:
    """Accuracy of a merge without writing it: equal to that of the folder `merge` writes."""
    encoder = merged_encoder(recipe, study=study, checkpoints=checkpoints, cancel=cancel)
    return evaluate(encoder, tasks, split, limit, cancel)


def evaluate_experts(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    tasks: Sequence[Task],
    split: str,
    limit: int | None = None,
    *,
    cancel: CancelFn | None = None,
) -> tuple[TaskAccuracy, ...]:
    """Accuracy of every expert on its own task: expert k answers task k."""
    found: list[TaskAccuracy] = []
    for expert, task in zip(experts, tasks, strict=True):
        recipe = Recipe(base=base.source, experts=(expert.source,), coefficient=1.0)
        found += evaluate_recipe(
            recipe, (task,), split, limit, checkpoints=(base, (expert,)), cancel=cancel
        )
    return tuple(found)


def require_text_encoder(folder: Path) -> None:
    """The zoo's tasks are read by a tokenizer and answered by features.

    Raises:
        AwdError: The folder has no tokenizer.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise AwdError(
            "The tasks of the zoo need a text encoder with its tokenizer",
            where=folder,
            received="no tokenizer.json",
            remedy="Evaluate other models with your own tasks.",
        )
