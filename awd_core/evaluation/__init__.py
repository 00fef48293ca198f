"""Evaluation of merged encoders on text classification tasks with frozen heads."""

from awd_core.evaluation.accuracy import (
    LIVE_SAMPLE,
    TaskAccuracy,
    evaluate,
    mean_accuracy,
    normalised_accuracy,
    recovered_gap,
)
from awd_core.evaluation.encoder import Encoder
from awd_core.evaluation.recipes import evaluate_experts, evaluate_recipe, merged_encoder
from awd_core.evaluation.tasks import SPLITS, Example, Task, load_task

__all__ = [
    "LIVE_SAMPLE",
    "SPLITS",
    "Encoder",
    "Example",
    "Task",
    "TaskAccuracy",
    "evaluate",
    "evaluate_experts",
    "evaluate_recipe",
    "load_task",
    "mean_accuracy",
    "merged_encoder",
    "normalised_accuracy",
    "recovered_gap",
]
