"""Scores on texts of one's own, kept as a JSON file."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from awd_core import files
from awd_core.errors import AwdError
from awd_core.evaluation.own import Score
from awd_core.recipe import Recipe

SCHEMA = 1


@dataclass(frozen=True)
class Evaluated:
    """What was measured, on what, of which merge.

    Attributes:
        scores: Every model on every task.
        recipe: The merge, as YAML.
        recipe_digest: Its digest.
        texts: Name of the file of texts.
        texts_sha256: Its hash.
        date: Of the evaluation, ISO 8601.
    """

    scores: tuple[Score, ...]
    recipe: str
    recipe_digest: str
    texts: str
    texts_sha256: str
    date: str


def evaluated(recipe: Recipe, texts: Path, scores: Sequence[Score]) -> Evaluated:
    """The scores with all that says what they are of."""
    return Evaluated(
        tuple(scores),
        recipe.to_yaml(),
        recipe.digest,
        texts.name,
        files.sha256(texts),
        datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def as_fields(found: Evaluated) -> dict[str, Any]:
    """As it is kept in JSON; a standard error that does not exist is null."""
    fields = asdict(found)
    for score in fields["scores"]:
        error = score["standard_error"]
        score["standard_error"] = None if isnan(error) else error
    return {"schema": SCHEMA, **fields}


def write_evaluated(found: Evaluated, out: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: `out` exists, or cannot be written.
    """
    files.require_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(out) as file:
        file.write_text(json.dumps(as_fields(found), indent=1), encoding="utf-8")


def read_evaluated(file: Path) -> Evaluated:
    """What `write_evaluated` wrote.

    Raises:
        AwdError: Something else is in the file.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if fields.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        scores = tuple(Score(**one) for one in fields.pop("scores"))
        known = (
            one if one.standard_error is not None else replace(one, standard_error=nan)
            for one in scores
        )
        return Evaluated(scores=tuple(known), **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AwdError(
            "These results cannot be read",
            where=file,
            received=f"{type(error).__name__}: {error}",
            expected="a file that `awd evaluate --texts` wrote",
            remedy="Remove it and evaluate again.",
        ) from error
