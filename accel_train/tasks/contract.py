"""What `Task` asks of a task, checked where it can be seen, so that a slip in one's own task is said in a sentence.

Every rank runs the same task on batches of the same shape, so all of them raise together.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from accel_train.data.dataset import Dataset, UnreadableSample
from accel_train.errors import CheckFailed, UserError
from accel_train.tasks.task import Batch, Task

MAX_PROBES = 100


def check_dataset(task: Task, dataset: Dataset, split: str) -> None:
    """Looks at the first sample that can be read. Raises UserError."""
    where = f"{type(dataset).__name__}, which {_name(task)} gives for the split {split}"
    if "fingerprint" not in dir(dataset) or not isinstance(dataset.fingerprint, str):
        raise UserError(f"{where}: it needs `fingerprint`, a digest of its rows as a string, which a resume compares.")
    for row in range(min(len(dataset), MAX_PROBES)):
        try:
            sample = dataset.read(row, None)
        except UnreadableSample:
            continue
        if not isinstance(sample, dict) or not all(isinstance(value, Tensor) for value in sample.values()):
            raise UserError(f"{where}: `read` must return a dictionary of tensors; row {row} is {_said(sample)}.")
        named = sample.get("sample_id")
        if named is None or named.ndim or named.is_floating_point():
            found = "no sample_id" if named is None else f"sample_id {_said(named)}"
            raise UserError(f"{where}: row {row} has {found}; each needs one, torch.tensor(row), beside its columns.")
        return


def losses_of(task: Task, outputs: Batch, batch: Batch, columns: Iterable[str]) -> dict[str, Tensor]:
    """The task's losses. `columns` are those of the micro-batches, of which `cached` passes `loss_columns` alone on."""
    try:
        losses = task.losses(outputs, batch)
    except KeyError as error:
        column = error.args[0]
        if column in columns and column not in batch:
            raise UserError(
                f"{_name(task)}.losses reads the column {column!r}. It compares the whole batch, so name that column in "
                "loss_columns: these are gathered over ranks."
            ) from error
        raise
    if not isinstance(losses, dict) or not losses:
        raise UserError(
            f"{_name(task)}.losses must return named terms, such as {{'mine': value}}; it is {_said(losses)}."
        )
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise UserError(f"{_name(task)}.losses: {name!r} is {_said(value)}; it must be a tensor of one number.")
    return losses


def check_gathered(task: Task, outputs: Batch, batch: Batch) -> None:
    """For `cached`, which joins outputs and columns of all ranks row by row."""
    num_rows = len(batch["sample_id"])
    for name in task.loss_columns:
        if name not in batch:
            raise UserError(f"{_name(task)}.loss_columns: {name!r} is not a column of the batch: {', '.join(batch)}.")
    for name in task.ring_outputs:
        if name not in outputs or name in task.shared_outputs or not task.splits_loss:
            raise UserError(
                f"{_name(task)}.ring_outputs: {name!r} must be an output with a row for each sample, and splits_loss "
                f"must be true, since losses of blocks add up. Outputs are {', '.join(outputs)}."
            )
    for name, value in outputs.items():
        if name not in task.shared_outputs and (not value.ndim or len(value) != num_rows):
            raise UserError(
                f"{_name(task)}: the model's output {name!r} is {_said(value)} for {num_rows} samples. An output has a row "
                "for each sample, or stands in shared_outputs."
            )


def check_predictions(task: Task, predictions: Any, num_rows: int) -> None:
    """A row for each row of the batch, so that rows of all ranks can be joined and fillers dropped."""
    if not isinstance(predictions, dict) or not predictions:
        raise UserError(f"{_name(task)}.predictions must return named tensors; it is {_said(predictions)}.")
    for name, value in predictions.items():
        if name == "row":
            raise UserError(f"{_name(task)}.predictions: the name 'row' is taken; choose another.")
        if not isinstance(value, Tensor) or not value.ndim or len(value) != num_rows:
            raise UserError(
                f"{_name(task)}.predictions: {name!r} is {_said(value)} for a batch of {num_rows} samples; it must have a "
                "row for each. Averages over samples belong in `scores`, which sees the whole split."
            )


def check_scores(task: Task, scores: Any) -> None:
    """All that `score_names` promises, `loss` if it likes, and nothing else."""
    if not isinstance(scores, dict):
        raise UserError(f"{_name(task)}.scores must return names with numbers; it is {_said(scores)}.")
    for name, value in scores.items():
        if not isinstance(value, int | float):
            raise UserError(f"{_name(task)}.scores: {name!r} is {_said(value)}; it must be a float: .item() makes one.")
    missing = [name for name in task.score_names if name not in scores]
    extra = [name for name in scores if name not in (*task.score_names, "loss")]
    if missing or extra:
        near = difflib.get_close_matches(missing[0], extra, n=1) if missing else []
        raise UserError(
            f"{_name(task)}.scores gives {', '.join(scores) or 'nothing'}, but score_names is "
            f"{', '.join(task.score_names) or 'empty'}. The two must name the same scores (`loss` may stand beside them)."
            + (f" Is {near[0]} meant to be {missing[0]}?" if near else "")
        )
    for name in task.score_names:
        if not math.isfinite(scores[name]):
            raise CheckFailed(f"the score {name} is {scores[name]}: no checkpoint could be judged by it.")


def _name(task: Task) -> str:
    return type(task).__name__


def _said(value: Any) -> str:
    """A value in a few words: its shape, or its type."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} tensor of shape {tuple(value.shape)}" if value.ndim else f"a {kind} tensor of one number"
    if isinstance(value, dict):
        wrong = [f"{name}: {type(item).__name__}" for name, item in value.items() if not isinstance(item, Tensor)]
        return f"a dictionary with {', '.join(wrong[:4])}" if wrong else "an empty dictionary"
    return "None" if value is None else f"a {type(value).__name__}"
