"""What is worth knowing about a plan before it runs. Nothing here stops a run.

A hazard is something that is likely not meant, each with its remedy. A note is a fact that a choice brings with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from accel_train.config.schema import RunConfig, interval_in_steps
from accel_train.optim.lr_scaling import lr_factor
from accel_train.optim.param_groups import GroupPlan
from accel_train.optim.schedule import num_warmup_steps
from accel_train.phases import Phase
from accel_train.tasks.task import Task
from accel_train.tools.dry_run.step import Split

MANY_ZERO_GROUPS = 20
MANY_FALSE_NEGATIVES = 0.05
"""Share of the rows of a batch that have an equal row among their negatives."""
FAR_SCALED = 8.0
"""Beyond so many times the batch that a learning rate was chosen at, neither rule of scaling holds by itself."""
LONG_WARMUP = 0.5


@dataclass(frozen=True, slots=True)
class Length:
    num_samples: int
    steps_per_epoch: int
    total_steps: int


def hazards(task: Task, phases: Sequence[Phase], plans: Sequence[GroupPlan], split: Split, length: Length) -> list[str]:
    """One sentence or two for each thing that is likely not meant, and what to do."""
    return [
        *_warmup(task.config, phases),
        *_length(task.config, length),
        *_intervals(task.config, length),
        *_batch(task, length),
        *_engine(max(plans, key=lambda plan: len(plan.groups)), split),
    ]


def notes(task: Task, phases: Sequence[Phase], plans: Sequence[GroupPlan], split: Split) -> list[str]:
    """What follows from the configuration and may not be expected."""
    found: list[str] = []
    for phase, plan in zip(phases, plans, strict=True):
        prefix = f"Phase {phase.name}: " if len(phases) > 1 else ""
        found += [prefix + line for line in _frozen(task, plan)]
    return [*found, *_encoded_twice(task, split), *task.hazards()]


def _frozen(task: Task, plan: GroupPlan) -> Iterator[str]:
    once = " and is encoded once a step" if task.compares_whole_batch else ""
    trained = {group.tower for group in plan.groups}
    for part in plan.frozen_parts:
        if part.tower is None:
            yield f"{', '.join(part.param_names)} belongs to no tower and needs no gradient: it stays as it is."
        elif part.tower not in trained:
            yield (
                f"Tower {part.tower} is frozen as a whole: it stays in eval mode{once}. An lr above 0 would train it."
            )


def _warmup(config: RunConfig, phases: Sequence[Phase]) -> Iterator[str]:
    for phase in phases:
        if phase.schedule_start != phase.start:
            continue
        steps = phase.schedule_end - phase.schedule_start
        warmup = num_warmup_steps(phase.schedule, steps)
        where = "schedule" if phase is phases[0] else f"phases.{phase.name}.schedule"
        remedy = f"Shorten it, schedule.warmup_ratio: 0.05 for example, or train longer (now {steps} steps)."
        if warmup >= steps:
            yield f"{where}: warmup takes {warmup} steps and the run {steps}, so no step learns at the full rate. {remedy}"
        elif warmup > LONG_WARMUP * steps:
            yield f"{where}: warmup takes {warmup} of {steps} steps. {remedy}"


def _length(config: RunConfig, length: Length) -> Iterator[str]:
    left_over = length.num_samples % config.data.global_batch_size
    if left_over and config.data.last_batch == "drop" and left_over > 0.1 * length.num_samples:
        yield (
            f"data.last_batch is drop: {left_over} of {length.num_samples} samples are left out of each epoch (others "
            "each time). A smaller global batch, or last_batch: keep, would use them."
        )
    if length.steps_per_epoch < 4:
        yield (
            f"An epoch is only {length.steps_per_epoch} steps long; a smaller data.global_batch_size would give more "
            "updates."
        )


def _intervals(config: RunConfig, length: Length) -> Iterator[str]:
    """Intervals that never come; `1 epoch` in a run of less is the default and says no more than `at the end`."""
    for key, interval in (
        ("evaluation.evaluate_every", config.evaluation.evaluate_every if config.data.valid_split else None),
        ("checkpoint.save_every", config.checkpoint.save_every),
        ("log.log_every", config.log.log_every),
    ):
        if interval is None or interval == "1 epoch":
            continue
        steps = interval_in_steps(interval, length.steps_per_epoch)
        if steps > length.total_steps:
            yield (
                f"{key} is {interval}, and the run has {length.total_steps} steps: only its end counts. Set it to "
                f"{max(1, length.total_steps // 10)} steps, for example."
            )
    early = config.evaluation.early_stopping
    if early is not None and config.evaluation.evaluate_every is not None:
        every = interval_in_steps(config.evaluation.evaluate_every, length.steps_per_epoch)
        if every * (early.patience + 1) > length.total_steps:
            yield (
                f"evaluation.early_stopping waits for {early.patience} evaluations without a gain, one every {every} steps, "
                f"and the run has {length.total_steps}: it never stops early. Evaluate more often, or take it out."
            )


def _batch(task: Task, length: Length) -> Iterator[str]:
    config, size = task.config, task.config.data.global_batch_size
    chance = task.chance_of_a_false_negative()
    pairs, share = chance * size * (size - 1) / 2, chance * (size - 1)
    if share > MANY_FALSE_NEGATIVES:
        yield (
            f"loss.positives is own: of the {size} pairs of a batch about {pairs:,.0f} couples are expected to have the "
            f"same image or text, so {min(share, 1.0):.0%} of the rows have a false negative. loss.positives: shared counts "
            "them as positives."
        )
    factor = lr_factor(config.optimizer, size)
    section = config.optimizer.lr_scaling
    if section is not None and not 1 / FAR_SCALED <= size / section.base_batch_size <= FAR_SCALED:
        yield (
            f"optimizer.lr_scaling: the rates were chosen at a batch of {section.base_batch_size}, and {size} is far from "
            f"it ({section.rule}: x {factor:.3g}). So far no rule holds by itself: measure with `accel-train find-lr`."
        )


def _engine(plan: GroupPlan, split: Split) -> Iterator[str]:
    if split.engine.startswith("zero") and len(plan.groups) > MANY_ZERO_GROUPS:
        yield (
            f"{len(plan.groups)} groups: {split.engine} communicates for each group apart in every step. fsdp2 and ddp do "
            "not; no_decay: none halves the groups."
        )


def _encoded_twice(task: Task, split: Split) -> Iterator[str]:
    twice = split.num_micro_batches - split.kept_graphs
    if not task.compares_whole_batch or twice <= 0:
        return
    further = " So is a larger compute.kept_graphs; `plan --fits SIZE` says how many graphs fit."
    yield (
        f"Each step has {split.num_micro_batches} micro-batches on a rank; {twice} of them {'is' if twice == 1 else 'are'} "
        "encoded twice, because the loss compares the whole global batch. A larger data.micro_batch_size is faster where "
        f"memory allows.{further if split.may_keep_more_graphs else ''}"
    )
