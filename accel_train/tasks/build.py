"""Tasks by name."""

import difflib

from accel_train.config.schema import RunConfig
from accel_train.errors import UserError
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.task import Task

TASKS: dict[str, type[Task]] = {"contrastive": ContrastiveTask}


def build_task(config: RunConfig) -> Task:
    """The task that `task:` names. Raises UserError for an unknown one, and for a best_score that it does not give."""
    if config.task not in TASKS:
        raise UserError(f"task: {config.task!r} is not known. The rule: one of {', '.join(TASKS)}.")
    task = TASKS[config.task](config)
    wanted = config.evaluation.best_score
    if config.data.valid_split is not None and wanted not in task.score_names:
        nearest = difflib.get_close_matches(wanted, task.score_names, n=1)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UserError(
            f"evaluation.best_score: {wanted!r} is not a score of the task {config.task}, which gives "
            f"{', '.join(task.score_names)}.{hint}"
        )
    return task
