"""A short training at each of several learning rates, all from one snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from accel_train.config.schema import RunConfig, ScheduleSection, interval_in_steps
from accel_train.evaluate import evaluate
from accel_train.phases import phase_at, plan_phases
from accel_train.run import Run
from accel_train.step import StepLosses
from accel_train.tools.find_lr.steps import take_steps
from accel_train.tools.rehearsal import Snapshot


@dataclass(frozen=True, slots=True)
class Rate:
    """What came out at one rate. Scores are those of the evaluation with the best one."""

    lr: float
    steps: int
    """Taken; fewer than planned where the loss was no longer finite."""
    train_loss: float
    """Mean over the last tenth of the steps."""
    train_metrics: dict[str, float]
    score_name: str
    best_score: float | None
    best_step: int | None
    test_score: float | None
    """Of the test split at the same step."""


def train_at_each(
    run: Run,
    config: RunConfig,
    rates: Sequence[float],
    snapshot: Snapshot,
    tower: str,
    *,
    steps: int | None,
    test_split: str | None,
) -> list[Rate]:
    """Trains at each rate of `tower`, the other towers in their ratio to it, under the schedule of the configuration.

    `steps` is the whole length of each training; None: one epoch. There must be a validation split.
    """
    valid_split = config.data.valid_split
    assert valid_split is not None
    steps = steps or run.order.steps_per_epoch
    _set_length(run, config, steps)
    configured = max(group["base_lr"] for group in run.engine.optimizer.param_groups if group["tower"] == tower)
    found = []
    for lr in rates:
        snapshot.restore(run)
        found.append(_train(run, lr, lr / configured, steps, valid_split, test_split))
    return found


def _set_length(run: Run, config: RunConfig, steps: int) -> None:
    schedule = config.schedule
    if (schedule.warmup_steps or 0) >= steps:  # made for a longer run: keep a tenth
        schedule = ScheduleSection(**schedule.model_dump() | {"warmup_steps": None, "warmup_ratio": 0.1})
    first = config.model_copy(update={"schedule": schedule, "phases": []})
    run.phases = plan_phases(first, steps_per_epoch=run.order.steps_per_epoch, total_steps=steps)
    run.phase, run.total_steps = phase_at(run.phases, 0), steps


def _train(run: Run, lr: float, factor: float, steps: int, valid_split: str, test_split: str | None) -> Rate:
    every = run.config.evaluation.evaluate_every
    interval = interval_in_steps(every, run.order.steps_per_epoch) if every else steps
    losses: list[float] = []
    best: tuple[float, int, float | None] | None = None
    last: StepLosses | None = None
    name = run.task.best_score

    def seen(step: StepLosses) -> bool:
        nonlocal best, last
        losses.append(float(sum(step.losses.values())))
        last = step
        if len(losses) % interval == 0 or len(losses) == steps:
            score = evaluate(run.engine, run.task, valid_split, run.config).scores[name]
            if best is None or score > best[0]:
                test = evaluate(run.engine, run.task, test_split, run.config).scores[name] if test_split else None
                best = (score, len(losses), test)
        return False

    take_steps(run, f"training at {lr:g}", steps, lambda tower: factor * run.phase.lr_scale(run.state.step), seen)
    tail = losses[-max(1, steps // 10) :]
    metrics = {} if last is None else {k: float(v) for k, v in run.task.train_metrics(last.outputs()).items()}
    score, step, test = best or (None, None, None)
    return Rate(lr, len(losses), sum(tail) / len(tail), metrics, name, score, step, test)


def rate_table(rows: Sequence[Rate]) -> Table:
    table = Table(title=f"{rows[0].steps} steps at each learning rate", title_justify="left", title_style="bold")
    for column in header(rows):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*cells(row, rows))
    return table


def header(rows: Sequence[Rate]) -> list[str]:
    with_test = any(row.test_score is not None for row in rows)
    names = ["learning rate", f"best {rows[0].score_name}", "at step", *(["test"] if with_test else []), "train loss"]
    return [*names, *(f"train {name}" for name in rows[0].train_metrics)]


def cells(row: Rate, rows: Sequence[Rate]) -> list[str]:
    """One row of the table; a rate at which nothing was scored has dashes."""
    with_test = any(other.test_score is not None for other in rows)
    scores = [row.best_score, *([row.test_score] if with_test else [])]
    shown = ["-" if score is None else f"{score:.4f}" for score in scores]
    step = "-" if row.best_step is None else str(row.best_step)
    metrics = [f"{row.train_metrics.get(name, float('nan')):.4f}" for name in rows[0].train_metrics]
    return [f"{row.lr:g}", shown[0], step, *shown[1:], f"{row.train_loss:.4f}", *metrics]
