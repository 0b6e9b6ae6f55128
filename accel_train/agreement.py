"""What all ranks agree on before each step, in one exchange of small integers."""

from dataclasses import dataclass
from typing import NoReturn

from accel_train.data.loader import Step
from accel_train.errors import UserError
from accel_train.run import Run
from accel_train.stopping import in_words


@dataclass(frozen=True, slots=True)
class Agreement:
    """The same on every rank."""

    rows: list[int]
    """Each rank's number of rows in this global batch, rank 0 first."""
    stop: str | None
    """Why all ranks are to leave before this step is taken; None: it is taken."""
    is_saved: bool
    """Whether every rank has written its part of a checkpoint in the background."""


def agree(run: Run, batch: Step) -> Agreement:
    """What every rank knows and the others must know too before they take the step of this batch.

    A reason to stop counts from the first step on: before it there is nothing to save. Unreadable samples are named, and
    their budget is enforced (UserError).
    """
    sizes = [len(part["sample_id"]) for part in batch.micro_batches]
    everyone = run.engine.exchange(
        [sum(sizes), min(sizes), len(batch.unreadable), run.stop.reason(), run.checkpoints.is_written, False]
    )
    rows, smallest, unreadable, reasons, written, failed = zip(*everyone, strict=True)
    if any(failed):
        run.engine.together(lambda: None)  # raises what `share_failure` told
    if any(reasons) and run.state.step > 0:
        return Agreement(list(rows), in_words(max(reasons)), all(written))
    if any(unreadable):
        _count_unreadable(run, batch, sum(unreadable))
    if not all(smallest):
        raise UserError(
            f"step {batch.step}: so many samples can't be read that a rank has fewer than its micro-batches. Mend the "
            "samples, or use a larger micro_batch_size."
        )
    return Agreement(list(rows), None, all(written))


def share_failure(run: Run, failure: Exception) -> NoReturn:
    """Takes this rank's part in `agree` when it has no batch: every rank raises the failure, instead of waiting for it."""

    def fail() -> NoReturn:
        raise failure

    run.engine.exchange([0, 0, 0, 0, 0, True])
    run.engine.together(fail)
    raise failure


def _count_unreadable(run: Run, batch: Step, new: int) -> None:
    for reasons in run.engine.gather_objects(batch.unreadable):
        for reason in reasons:
            run.log.say(f"warning: step {batch.step}: skipped a sample that can't be read: {reason}")
    run.state.unreadable += new
    budget = run.config.data.max_unreadable_samples
    if run.state.unreadable > budget:
        raise UserError(
            f"{run.state.unreadable} samples can't be read, and data.max_unreadable_samples is {budget}. They are named "
            "above. Mend or remove them (`accel-train import` checks every record), or raise the budget.",
            code="AT505",
        )
