"""Steps of a run at learning rates that come from outside."""

from collections.abc import Callable

from accel_train.agreement import agree
from accel_train.gradients import all_finite, find_gradients, update
from accel_train.run import Run
from accel_train.step import StepLosses
from accel_train.tools.row_progress import RowProgress
from accel_train.train import global_batches


def take_steps(
    run: Run, what: str, steps: int, scale: Callable[[str], float], seen: Callable[[StepLosses], bool]
) -> None:
    """Trains from the present step on, at `scale(tower)` times each group's base rate, until `seen` is satisfied.

    A step whose gradient is not finite is the last one, and changes no weight.
    """
    with RowProgress(what, steps, done=0, shown=run.engine.is_main, unit="steps") as progress:
        for batch in global_batches(run):
            agreed = agree(run, batch)
            for group in run.engine.optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale(group["tower"])
            losses, norms = find_gradients(run, batch, agreed.rows)
            finite = all_finite(losses, norms)
            if finite:
                update(run, norms)
            else:
                run.engine.discard_gradients()
            run.state.step += 1
            progress.advance(1)
            if seen(losses) or not finite:
                return
