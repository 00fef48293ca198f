"""Studies of the zoo's experts: their tasks are here, so accuracy can stand beside the sliders."""

from awd_core import Study, zoo
from awd_core.evaluation import Task


def is_of_zoo(study: Study) -> bool:
    """Whether base and experts are the zoo's, all or some, in any order."""
    known = {f"zoo:{key}" for key in zoo.TASK_KEYS}
    return study.base.source == "zoo:base" and all(one.source in known for one in study.sources)


def is_whole_zoo(study: Study) -> bool:
    """Whether they are all of it, in its order."""
    return is_of_zoo(study) and [one.source for one in study.sources] == [
        f"zoo:{key}" for key in zoo.TASK_KEYS
    ]


def own_tasks(study: Study) -> tuple[Task, ...]:
    """The task of every expert, in their order."""
    tasks = {f"zoo:{task.key}": task for task in zoo.tasks()}
    return tuple(tasks[source.source] for source in study.sources)
