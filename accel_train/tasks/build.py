"""Tasks by name."""

import difflib

from accel_train.config.schema import RunConfig
from accel_train.config.tasks import own_class
from accel_train.errors import UserError
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.multimodal_alignment import MultimodalAlignmentTask
from accel_train.tasks.multimodal_llm import MultimodalLlmTask
from accel_train.tasks.scorer import ScorerTask
from accel_train.tasks.sequence_classification import SequenceClassificationTask
from accel_train.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "contrastive": ContrastiveTask,
    "multimodal_alignment": MultimodalAlignmentTask,
    "multimodal_llm": MultimodalLlmTask,
    "scorer": ScorerTask,
    "sequence_classification": SequenceClassificationTask,
}


def task_class(name: str) -> type[Task]:
    """A built-in task, or a user's class. Raises UserError if it is no task."""
    if name in TASKS:
        return TASKS[name]
    try:
        found = own_class(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not issubclass(found, Task):
        raise UserError(f"task: {name} is no subclass of accel_train.tasks.task.Task.")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"task: {name} lacks {', '.join(missing)}, which every task defines; see docs/add_a_task.md.")
    return found


def build_task(config: RunConfig) -> Task:
    """The task that `task:` names. Raises UserError for a best_score that it does not give."""
    task = task_class(config.task)(config)
    if config.data.valid_split is None:
        return task
    if not task.score_names:
        raise UserError(
            f"data.valid_split is {config.data.valid_split!r}, but the task {config.task} names no scores. Give it "
            "score_names, or set data.valid_split to null."
        )
    wanted = task.best_score
    if wanted not in task.score_names:
        nearest = difflib.get_close_matches(wanted, task.score_names, n=1)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UserError(
            f"evaluation.best_score: {wanted!r} is not a score of the task {config.task}, which gives "
            f"{', '.join(task.score_names)}.{hint}"
        )
    return task
