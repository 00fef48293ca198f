"""Results of the EleutherAI harness (`lm_eval --output_path`), read from their JSON."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from awd_core import AwdError

# What follows a comma in a metric's name is its filter; `none` says nothing.
COLUMNS = ("model", "task", "metric", "value", "standard_error")


def read_lm_eval(text: str, name: str) -> pd.DataFrame:
    """[model, task, metric, value, standard_error], one row for each number of each task.

    Args:
        text: The JSON file's text.
        name: Of the file; the model's name where the file does not say.

    Raises:
        AwdError: No JSON, or no results of the harness.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _refused(name, f"no JSON: {error}") from error
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict):
        raise _refused(name, "JSON without `results` by task")
    model = _model(found) or name
    rows = [
        row
        for task, numbers in results.items()
        if isinstance(numbers, dict)
        for row in _rows(model, task, numbers)
    ]
    if not rows:
        raise _refused(name, "no task with a number")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def beside(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Results of several files, by name, as one table; models of one name have their file's, too.

    Else numbers of two runs of one model would pass for one.
    """
    models = pd.concat([table["model"].drop_duplicates() for table in tables.values()])
    several = set(models[models.duplicated()])
    named = [
        table.assign(
            model=[f"{model} ({name})" if model in several else model for model in table["model"]]
        )
        for name, table in tables.items()
    ]
    return pd.concat(named, ignore_index=True)


def _refused(name: str, received: str) -> AwdError:
    return AwdError(
        "This is not a results file of lm-eval",
        where=name,
        received=received,
        expected="the results_*.json that `lm_eval --output_path` writes",
    )


def _model(found: dict[str, Any]) -> str | None:
    """The folder or id that was evaluated."""
    if model := found.get("model_name"):
        return str(model)
    config = found.get("config")
    arguments = config.get("model_args", "") if isinstance(config, dict) else ""
    if isinstance(arguments, dict):
        return arguments.get("pretrained")
    parts = dict(part.split("=", 1) for part in str(arguments).split(",") if "=" in part)
    return parts.get("pretrained")


def _rows(model: str, task: str, numbers: dict[str, Any]) -> list[tuple[object, ...]]:
    rows = []
    for key, value in numbers.items():
        metric, _, chosen = key.partition(",")
        if metric.endswith("_stderr") or isinstance(value, bool):
            continue
        if isinstance(value, int | float) and chosen:
            error = numbers.get(f"{metric}_stderr,{chosen}")
            error = float(error) if isinstance(error, int | float) else float("nan")
            shown = metric if chosen == "none" else f"{metric} ({chosen})"
            rows.append((model, str(task), shown, float(value), error))
    return rows
