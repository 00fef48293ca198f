"""Every merge method, one file each. Forms, command line, docs and tests follow from METHODS."""

from awd_core.errors import RecipeError, nearest
from awd_core.method import MergeMethod
from awd_core.methods.average import Average
from awd_core.methods.task_arithmetic import TaskArithmetic
from awd_core.methods.ties import Ties

METHODS: tuple[type[MergeMethod], ...] = (TaskArithmetic, Average, Ties)


def find_method(key: str) -> type[MergeMethod]:
    """The method of this name.

    Raises:
        RecipeError: There is none.
    """
    for candidate in METHODS:
        if candidate.key == key:
            return candidate
    raise RecipeError(
        "Unknown merge method",
        where="method",
        received=key,
        remedy=nearest(key, tuple(candidate.key for candidate in METHODS)),
    )
