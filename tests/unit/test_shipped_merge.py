"""What the dashboard shows is what is shipped: the same recipe, loaded by transformers."""

from pathlib import Path

import pytest
from transformers import AutoModel

import awd_core as awd
from awd_core import zoo
from awd_core.evaluation import Encoder, evaluate, evaluate_recipe

EXPERTS = tuple(f"zoo:{key}" for key in zoo.TASK_KEYS)
# Examples per task: enough that any changed weight shows, few enough for a test.
SAMPLE = 16


@pytest.mark.parametrize(
    "fields",
    [
        {"coefficient": 0.25},
        {"coefficient": 0.3, "disentangle": {"granularity": "row"}},
        {"method": "ties", "coefficient": 0.8, "disentangle": {"granularity": "tensor"}},
    ],
    ids=["task arithmetic", "AWD row", "AWD tensor then TIES"],
)
def test_a_shipped_merge_has_exactly_the_accuracies_that_were_shown(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    recipe = awd.Recipe(base="zoo:base", experts=EXPERTS, **fields)
    shown = evaluate_recipe(recipe, zoo.tasks(), "validation", SAMPLE)
    folder = awd.merge(recipe, tmp_path / "merged")
    model = AutoModel.from_pretrained(folder)
    loaded = evaluate(Encoder(model, folder), zoo.tasks(), "validation", SAMPLE)
    assert loaded == shown
    assert awd.verify(folder, load=False).ok
