"""Training of one expert: only the encoder moves, the task's head stays frozen.

loss = cross-entropy of softmax(<f(x), p_c> / T) over the classes c.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from awd_core.evaluation.encoder import Encoder, padded
from awd_core.evaluation.tasks import Example, Task

# Every linear layer of the encoder; the pooler is left out, since no feature depends on it.
LORA_TARGETS = ("query", "key", "value", "output.dense", "intermediate.dense")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides an expert's training, besides its data and its head."""

    learning_rate: float
    steps: int = 120
    warmup_steps: int = 12
    batch_size: int = 32
    temperature: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter: W + (alpha / rank) B A on every linear layer."""

    rank: int = 16
    alpha: int = 32


LORA_TRAINING = TrainingSettings(learning_rate=1e-3)
FULL_TRAINING = TrainingSettings(learning_rate=3e-5)


def with_adapter(encoder: Encoder, lora: LoraSettings, seed: int) -> PeftModel:
    """The encoder's model wrapped in a fresh adapter, B = 0 and A drawn from the seed alone.

    One seed gives all experts the same A: they start from one adapter, as a family does, and
    their task vectors B A can then share directions.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(LORA_TARGETS),
        lora_dropout=0.0,
        bias="none",
        task_type="FEATURE_EXTRACTION",
    )
    adapted = get_peft_model(encoder.model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def fit(
    encoder: Encoder,
    task: Task,
    examples: Sequence[Example],
    settings: TrainingSettings,
    progress: Callable[[], None] | None = None,
) -> None:
    """Trains the encoder's trainable parameters in place on one task.

    AdamW without weight decay, which would move parameters that no text touches, the same way in
    every expert. The learning rate rises over the warm-up, then falls linearly to 0. Dropout stays
    off: the runs are short, and a merge is evaluated without it.

    Args:
        encoder: The encoder; parameters with `requires_grad` are trained.
        task: Gives the frozen head.
        examples: Training examples.
        settings: Decides the run together with the examples.
        progress: Called after each step.
    """
    trained = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / settings.warmup_steps,
            (settings.steps - step) / (settings.steps - settings.warmup_steps),
        ),
    )
    tokens = [encoder.tokens(example.text) for example in examples]
    labels = torch.tensor([task.labels.index(example.label) for example in examples])
    for rows in batches(len(examples), settings):
        ids, mask = padded([tokens[row] for row in rows])
        scores = encoder.encode(ids, mask) @ task.head.T / settings.temperature
        optimizer.zero_grad()
        cross_entropy(scores, labels[rows]).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress()


def batches(n_examples: int, settings: TrainingSettings) -> list[list[int]]:
    """Rows of each step's batch: epoch after epoch of fresh permutations drawn from the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.batch_size
    rows: list[int] = []
    while len(rows) < settings.steps * size:
        rows.extend(torch.randperm(n_examples, generator=generator).tolist())
    return [rows[step * size : (step + 1) * size] for step in range(settings.steps)]
