"""What a person who has run many of these would point out about a plan. Nothing here stops a run."""

from collections.abc import Iterator, Sequence

from accel_train.config.schema import OptimizerSection, RunConfig, Tower
from accel_train.optim.param_groups import GroupPlan
from accel_train.optim.schedule import num_warmup_steps
from accel_train.phases import Phase
from accel_train.tasks.task import Task

DECAY_LOW, DECAY_HIGH = 0.8, 0.95
"""Layer decay that has worked for fine-tuning towers of 12 to 24 layers."""
MANY_ZERO_GROUPS = 20
LOWEST_USEFUL_RATE = 0.01


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
        lines = [*_frozen(task, plan), *_decay(phase.optimizer, plan)]
        by_phase += [prefix + line for line in lines]
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


def _decay(optimizer: OptimizerSection, plan: GroupPlan) -> Iterator[str]:
    for tower in optimizer.towers:
        rates = [group.lr for group in plan.groups if group.tower == tower.name]
        if tower.layer_decay == 1 or not rates:
            continue
        if not DECAY_LOW <= tower.layer_decay <= DECAY_HIGH:
            yield (
                f"optimizer.towers.{tower.name}.layer_decay is {tower.layer_decay:g}; {DECAY_LOW} to {DECAY_HIGH} is "
                "what works for most towers."
            )
        if min(rates) < LOWEST_USEFUL_RATE * max(rates):
            yield _too_low(tower, min(rates) / max(rates))


def _too_low(tower: Tower, ratio: float) -> str:
    return (
        f"Tower {tower.name}: its lowest trained layer learns at {ratio:.2g} of the rate of its top layer, next to "
        "nothing. Freeze the low layers with train_last, or raise layer_decay: the two belong together."
    )


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
