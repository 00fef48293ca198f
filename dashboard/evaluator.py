"""`python -m dashboard.evaluator`: the process that evaluates, so that the server stays free.

It reads requests from standard input, one JSON object a line, and answers on standard output. A new
line replaces the one before: what nobody wants any more is dropped between two batches. When its
input ends, it ends.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TextIO

from awd_core import AwdError, Cancelled, Recipe, Study, open_checkpoint, open_study, zoo
from awd_core.checkpoints import Checkpoint
from awd_core.evaluation import (
    Encoder,
    TaskAccuracy,
    evaluate,
    evaluate_experts,
    evaluate_recipe,
)
from awd_core.progress import CancelFn
from dashboard.zoo_study import own_tasks

# Slider positions that are only passed over are not worth an evaluation.
SECONDS_OF_REST = 0.25
# The server and the browser on the same machine come first.
NICENESS = 5


class Wish:
    """The newest line of the input, as a thread of its own reads it."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._changed = threading.Condition()
        self._newest: str | None = None
        self._ended = False
        threading.Thread(target=self._read, name="input", daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            with self._changed:
                self._newest = line
                self._changed.notify()
        with self._changed:
            self._newest, self._ended = None, True
            self._changed.notify()

    def is_newest(self, line: str) -> bool:
        """Whether no other line came after this one."""
        return self._newest is line

    def __iter__(self) -> Iterator[str]:
        """Lines that stayed the newest for a moment, each once, until the input ends."""
        done = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda done=done: self._ended or self._newest is not done)
                line = self._newest
                if line is None:
                    return
                self._changed.wait(SECONDS_OF_REST)
                if self._newest is not line:
                    continue
            done = line
            yield line


def answer(request: dict[str, Any], cancel: CancelFn) -> tuple[TaskAccuracy, ...]:
    """The accuracies that were asked for.

    Args:
        request: `what` (`base`, `experts` or `merge`), `study` (its folder) and its `digest`,
            `split`, `limit`, and `recipe` for a merge.
        cancel: Whether nobody wants them any more.
    """
    study, split, limit = (
        _study(request["study"], request["digest"]),
        request["split"],
        request["limit"],
    )
    tasks = own_tasks(study)
    if request["what"] == "base":
        encoder = Encoder.from_folder(_base(study).path)
        return evaluate(encoder, tasks, split, limit, cancel)
    if request["what"] == "experts":
        return evaluate_experts(_base(study), _experts(study), tasks, split, limit, cancel=cancel)
    recipe = Recipe.model_validate(request["recipe"])
    opened = (_base(study), _experts(study))
    return evaluate_recipe(
        recipe, tasks, split, limit, study=study, checkpoints=opened, cancel=cancel
    )


@lru_cache(maxsize=2)
def _study(folder: str, digest: str) -> Study:
    return open_study(folder)


def _base(study: Study) -> Checkpoint:
    return _checkpoint(study.base.source)


def _experts(study: Study) -> Sequence[Checkpoint]:
    return [_checkpoint(source.source) for source in study.sources]


@lru_cache(maxsize=32)
def _checkpoint(source: str) -> Checkpoint:
    return open_checkpoint(source)


def main() -> None:
    """Answer until the input ends."""
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # What libraries print shall not stand between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    wish = Wish(sys.stdin)
    # Importing transformers takes seconds: done before anybody asks.
    Encoder.from_folder(zoo.base_folder()).features(["warm"])
    for line in wish:
        request = json.loads(line)
        if request is None:
            continue
        reply: dict[str, Any] = {"id": request["id"]}
        try:
            found = answer(request, lambda line=line: not wish.is_newest(line))
            reply["accuracies"] = [asdict(one) for one in found]
        except Cancelled:
            continue
        except AwdError as error:
            reply["error"] = {k: v for k, v in error.as_dict().items() if k != "error"}
        except Exception as error:  # every session shares this process: it goes on
            traceback.print_exc()
            reply["error"] = {
                "problem": "This could not be evaluated",
                "received": f"{type(error).__name__}: {error}",
                "remedy": "The server's log says where. Change a setting to try again.",
            }
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
