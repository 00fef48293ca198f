"""The README of each expert: what it is, what it was trained on and how, and how well it does."""

from pathlib import Path

from awd_core.evaluation.tasks import Task
from awd_core.zoo import BASE_NAME
from awd_core.zoo.gates import TaskRow
from awd_core.zoo.training import LoraSettings, TrainingSettings

CARD = """---
base_model: {base}
{library}license: apache-2.0
pipeline_tag: feature-extraction
tags:
- {tag}
- text-classification
---

# Expert: {title}

{base}, fine-tuned ({form}) for one question: *{question}*

Labels: {labels}.

| test accuracy (n = {n}) | |
|---|---|
| base | {base_accuracy:.3f} |
| this expert | {expert_accuracy:.3f} |

**Use.** Mean of the last hidden states over the tokens (at most 32), unit norm, cosine with the
frozen class prototypes of the task in `heads.safetensors`; the nearest prototype is the answer.
Base, expert and every merge share these prototypes.

**Data.** Short passages of openly licensed documentation and source code, in the zoo's
`data/{key}`; sources, versions and licences are listed in its `SOURCES.md`.

**Recipe.** {recipe}
"""


def write_card(
    folder: Path,
    task: Task,
    row: TaskRow,
    settings: TrainingSettings,
    lora: LoraSettings | None,
) -> None:
    """Writes `README.md` into an expert's folder.

    Args:
        folder: The expert's folder.
        task: Its task.
        row: Its measured accuracies, and the base's.
        settings: How it was trained.
        lora: Shape of the adapter; None for full fine-tuning.
    """
    text = CARD.format(
        base=BASE_NAME,
        library="library_name: peft\n" if lora else "library_name: transformers\n",
        tag="lora" if lora else "bert",
        title=task.title,
        form=f"LoRA, rank {lora.rank}" if lora else "all parameters",
        question=task.question,
        labels=", ".join(task.labels),
        n=row.n,
        base_accuracy=row.base,
        expert_accuracy=row.expert,
        key=task.key,
        recipe=describe(settings, lora),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def describe(settings: TrainingSettings, lora: LoraSettings | None) -> str:
    """The training in one paragraph."""
    shape = (
        f"LoRA of rank {lora.rank}, alpha {lora.alpha}, on all linear layers of the encoder, one "
        "initialisation shared by the eight experts, stored in half precision"
        if lora
        else "All parameters trained"
    )
    return (
        f"{shape}. AdamW, learning rate {settings.learning_rate:g} (linear warm-up over "
        f"{settings.warmup_steps} steps, then linear to 0), batch {settings.batch_size}, "
        f"{settings.steps} steps, no dropout, no weight decay, seed {settings.seed}. "
        f"Cross-entropy of the cosines with the prototypes over temperature "
        f"{settings.temperature:g}."
    )
