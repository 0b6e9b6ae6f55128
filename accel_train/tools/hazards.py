"""What is worth knowing about a plan before it runs: what it leaves out, what it costs. Nothing here stops a run."""

from collections.abc import Iterator, Sequence

from accel_train.config.schema import RunConfig
from accel_train.optim.param_groups import GroupPlan
from accel_train.optim.schedule import num_warmup_steps
from accel_train.phases import Phase
from accel_train.tasks.task import Task

MANY_ZERO_GROUPS = 20


def hazards(
    task: Task,
    phases: Sequence[Phase],
    plans: Sequence[GroupPlan],
    *,
    engine: str,
    num_micro_batches: int,
    num_samples: int,
    steps_per_epoch: int,
    total_steps: int,
) -> list[str]:
    """One sentence or two for each thing to know before this run starts."""
    by_phase: list[str] = []
    for phase, plan in zip(phases, plans, strict=True):
        prefix = f"Phase {phase.name}: " if len(phases) > 1 else ""
        by_phase += [prefix + line for line in _frozen(task, plan)]
    return [
        *by_phase,
        *_length(task.config, num_samples, steps_per_epoch, total_steps),
        *_engine(max(plans, key=lambda plan: len(plan.groups)), engine),
        *_split(task, num_micro_batches),
        *task.hazards(),
    ]


def _frozen(task: Task, plan: GroupPlan) -> Iterator[str]:
    once = " and is encoded once a step" if task.compares_whole_batch else ""
    trained = {group.tower for group in plan.groups}
    for part in plan.frozen_parts:
        if part.tower is None:
            yield f"{', '.join(part.param_names)} belongs to no tower and needs no gradient: it stays as it is."
        elif part.tower not in trained:
            yield f"Tower {part.tower} is frozen as a whole: it stays in eval mode{once}."


def _length(config: RunConfig, num_samples: int, steps_per_epoch: int, total_steps: int) -> Iterator[str]:
    warmup = num_warmup_steps(config.schedule, total_steps)
    if warmup >= total_steps:
        yield f"schedule: warmup takes {warmup} steps and the run {total_steps}, so no step learns at the full rate."
    elif warmup > 0.3 * total_steps:
        yield f"schedule: warmup takes {warmup} of {total_steps} steps."
    left_over = num_samples % config.data.global_batch_size
    if left_over and config.data.last_batch == "drop" and left_over > 0.1 * num_samples:
        yield (
            f"data.last_batch is drop: {left_over} of {num_samples} samples are left out of each epoch (others each "
            "time). A smaller global batch, or last_batch: keep, would use them."
        )
    if steps_per_epoch < 4:
        yield f"An epoch is only {steps_per_epoch} steps long; a smaller data.global_batch_size would give more updates."


def _engine(plan: GroupPlan, engine: str) -> Iterator[str]:
    if engine.startswith("zero") and len(plan.groups) > MANY_ZERO_GROUPS:
        yield (
            f"{len(plan.groups)} groups: {engine} communicates for each group apart in every step. fsdp2 and ddp do not; "
            "no_decay: none halves the groups."
        )


def _split(task: Task, num_micro_batches: int) -> Iterator[str]:
    if task.compares_whole_batch and num_micro_batches > 1:
        yield (
            f"Each step has {num_micro_batches} micro-batches on a rank; all but one are encoded twice, because the loss "
            "compares the whole global batch. A larger data.micro_batch_size is faster where memory allows."
        )
