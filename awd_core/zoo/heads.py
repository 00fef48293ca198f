"""Heads: one prototype per class, made from the base's features and then frozen."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.tasks import Task


def class_prototypes(encoder: Encoder, task: Task) -> Tensor:
    """p_c = m_c / ||m_c||, m_c the mean feature of the few-shot examples of class c; float32.

    Args:
        encoder: The base.
        task: The task, whose few-shot split is used.
    """
    examples = task.examples("few_shot")
    features = encoder.features([example.text for example in examples])
    prototypes = []
    for label in task.labels:
        rows = [place for place, example in enumerate(examples) if example.label == label]
        prototypes.append(normalize(features[rows].mean(dim=0), dim=0))
    return torch.stack(prototypes)


def write_heads(encoder: Encoder, tasks: Sequence[Task], path: Path) -> None:
    """Writes the prototypes of every task under the task's key.

    Args:
        encoder: The base.
        tasks: The tasks.
        path: The safetensors file.
    """
    save_file({task.key: class_prototypes(encoder, task) for task in tasks}, path)
