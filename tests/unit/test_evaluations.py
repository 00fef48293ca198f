"""The evaluator's process: answers, dropped wishes, errors, and what happens when it dies."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import awd_core as awd
from awd_core import zoo
from awd_core.evaluation import TaskAccuracy, evaluate_recipe
from dashboard.evaluations import Evaluator, Result, Wish, wishes
from dashboard.zoo_study import is_of_zoo, is_whole_zoo

SECONDS = 300
N_TEXTS = 4


@pytest.fixture(scope="module")
def study(awd_home: Path) -> awd.Study:
    experts = [awd.open_checkpoint(f"zoo:{key}") for key in zoo.TASK_KEYS]
    return awd.collect(awd.open_checkpoint("zoo:base"), experts)


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    found = Evaluator()
    yield found
    found.close()


def recipe(coefficient: float) -> awd.Recipe:
    return awd.Recipe(
        base="zoo:base",
        experts=[f"zoo:{key}" for key in zoo.TASK_KEYS],
        coefficient=coefficient,
        disentangle={"granularity": "tensor"},
    )


def answer(evaluator: Evaluator, session: str, wish: Wish) -> Result | awd.AwdError:
    deadline = time.monotonic() + SECONDS
    while (found := evaluator.ask(session, wish)) is None:
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.05)
    return found


def test_answers_are_those_of_the_core(evaluator: Evaluator, study: awd.Study) -> None:
    asked = wishes(study, recipe(0.3), "validation", N_TEXTS)
    expected = evaluate_recipe(recipe(0.3), zoo.tasks(), "validation", N_TEXTS, study=study)
    assert answer(evaluator, "a", asked["merge"]) == expected
    experts = answer(evaluator, "a", asked["experts"])
    assert isinstance(experts, tuple)
    assert [one.task for one in experts] == list(zoo.TASK_KEYS)
    alone = awd.Recipe(base="zoo:base", experts=["zoo:exception"], coefficient=1.0)
    (task,) = (task for task in zoo.tasks() if task.key == "exception")
    (own,) = evaluate_recipe(alone, (task,), "validation", N_TEXTS)
    assert own in experts
    base = answer(evaluator, "a", asked["base"])
    assert isinstance(base, tuple)
    assert all(isinstance(one, TaskAccuracy) for one in base)


def test_some_experts_of_the_zoo_have_their_own_tasks(evaluator: Evaluator, awd_home: Path) -> None:
    keys = ["torch_area", "library"]
    opened = [awd.open_checkpoint(f"zoo:{key}") for key in keys]
    some = awd.collect(awd.open_checkpoint("zoo:base"), opened)
    assert is_of_zoo(some)
    assert not is_whole_zoo(some)
    merge = awd.Recipe(base="zoo:base", experts=[f"zoo:{key}" for key in keys])
    for wish in wishes(some, merge, "validation", N_TEXTS).values():
        found = answer(evaluator, "some", wish)
        assert isinstance(found, tuple)
        assert [one.task for one in found] == keys


def test_a_study_that_cannot_be_evaluated_does_not_end_the_process(
    evaluator: Evaluator, study: awd.Study, awd_home: Path
) -> None:
    opened = [awd.open_checkpoint(source) for source in ("zoo:library", "zoo:base")]
    odd = awd.collect(awd.open_checkpoint("zoo:base"), opened)
    assert not is_of_zoo(odd)
    merge = awd.Recipe(base="zoo:base", experts=["zoo:library", "zoo:base"])
    error = answer(evaluator, "odd", wishes(odd, merge, "validation", N_TEXTS)["base"])
    assert isinstance(error, awd.AwdError)
    assert "KeyError" in str(error)
    pid = evaluator.pid
    wanted = wishes(study, recipe(0.3), "validation", N_TEXTS)["base"]
    assert isinstance(answer(evaluator, "a", wanted), tuple)
    assert evaluator.pid == pid


def test_the_newest_wish_of_a_session_replaces_the_one_before(
    evaluator: Evaluator, study: awd.Study
) -> None:
    passed_over = wishes(study, recipe(0.41), "test", None)["merge"]
    wanted = wishes(study, recipe(0.42), "validation", N_TEXTS)["merge"]
    assert evaluator.ask("b", passed_over) is None
    time.sleep(1.0)  # it has begun on the whole test split
    start = time.monotonic()
    assert isinstance(answer(evaluator, "b", wanted), tuple)
    assert time.monotonic() - start < SECONDS / 2
    assert passed_over not in evaluator.results


def test_sessions_do_not_take_each_others_wishes(evaluator: Evaluator, study: awd.Study) -> None:
    first = wishes(study, recipe(0.51), "validation", N_TEXTS)["merge"]
    second = wishes(study, recipe(0.52), "validation", N_TEXTS)["merge"]
    assert evaluator.ask("c", first) is None
    assert evaluator.ask("d", second) is None
    assert isinstance(answer(evaluator, "d", second), tuple)
    assert isinstance(answer(evaluator, "c", first), tuple)


def test_an_error_comes_back_as_it_was_raised(evaluator: Evaluator, study: awd.Study) -> None:
    lost = wishes(study, recipe(0.3), "validation", N_TEXTS)["base"]
    found = answer(evaluator, "e", replace(lost, study="/nowhere", digest="other"))
    assert isinstance(found, awd.AwdError)
    assert found.where
    assert "/nowhere" in found.where


def test_a_killed_process_is_told_and_started_again(study: awd.Study) -> None:
    evaluator = Evaluator()
    wish = wishes(study, recipe(0.3), "test", None)["merge"]
    assert evaluator.ask("f", wish) is None
    assert evaluator.pid is not None
    os.kill(evaluator.pid, signal.SIGKILL)
    found = answer(evaluator, "f", wish)
    assert isinstance(found, awd.AwdError)
    assert "ended" in found.problem
    other = wishes(study, recipe(0.3), "validation", N_TEXTS)["base"]
    assert isinstance(answer(evaluator, "f", other), tuple)
    evaluator.close()
