"""The largest micro_batch_size that fits into a device, for every engine, and how many graphs a cached step can keep."""

from dataclasses import dataclass, replace

from torch import nn

from accel_train.config.schema import RunConfig
from accel_train.optim.param_groups import GroupPlan
from accel_train.tasks.task import Task
from accel_train.tools.dry_run.step import Split, dry_step
from accel_train.tools.memory import device_bytes, memory_parts
from accel_train.tools.plan.scale import ENGINES

SMALLEST, FIRST = 2, 16
"""Sizes that are counted first; 2, because BatchNorm needs more than one value."""
MOST_STEPS = 5
LARGEST = 2**20


@dataclass(frozen=True, slots=True)
class Fit:
    engine: str
    activation_checkpointing: bool
    micro_batch_size: int
    """The largest that fits; 0 if not even the smallest does."""
    dividing: int
    """The largest that fits and divides the configuration's global batch on these ranks; 0 if none does."""
    num_bytes: int
    """What the device then holds at the peak of a step; for 0, what the smallest batch would need."""


@dataclass(frozen=True, slots=True)
class GraphsThatFit:
    """For a cached step whose micro-batches are as configured."""

    kept_graphs: int
    num_bytes: int
    """What the device then holds at the peak of a step."""
    share_of_time: float
    """Of a step with as many graphs as `split` has, if all trains and a backward pass takes twice a forward pass's time."""


def fits(model: nn.Module, plan: GroupPlan, task: Task, split: Split, limit: int) -> list[Fit]:
    """For every engine, with and without activation checkpointing; ranks and micro-batches are those of `split`."""
    found = []
    for engine in ENGINES:
        for checkpointing in (False, True):
            offload = split.offload and engine.startswith("zero")
            variant = replace(split, engine=engine, activation_checkpointing=checkpointing, offload=offload)
            if not variant.may_keep_several_graphs:
                variant = replace(variant, kept_graphs=1)
            found.append(_fit(model, plan, task, variant, limit))
    return found


def _fit(model: nn.Module, plan: GroupPlan, task: Task, split: Split, limit: int) -> Fit:
    """Memory is the largest of several straight lines over the batch size, so secants soon meet the limit."""
    needed: dict[int, int] = {}

    def need(size: int) -> int:
        if size not in needed:
            needed[size] = _peak(model, plan, task, replace(split, micro_batch_size=size))
        return needed[size]

    if need(SMALLEST) > limit:
        return Fit(split.engine, split.activation_checkpointing, 0, 0, need(SMALLEST))
    need(FIRST)
    for _ in range(MOST_STEPS):
        near, other = sorted(needed, key=lambda size: abs(needed[size] - limit))[:2]
        slope = (needed[other] - needed[near]) / (other - near)
        guess = LARGEST if slope <= 0 else min(LARGEST, max(SMALLEST, int(near + (limit - needed[near]) / slope)))
        if guess in needed:
            break
        need(guess)
    best = max(size for size in needed if needed[size] <= limit)
    per_rank = task.config.data.global_batch_size // split.world_size
    dividing = max((size for size in range(1, min(best, per_rank) + 1) if per_rank % size == 0), default=0)
    return Fit(split.engine, split.activation_checkpointing, best, dividing, need(best))


def graphs_that_fit(model: nn.Module, plan: GroupPlan, task: Task, split: Split, limit: int) -> GraphsThatFit | None:
    """None where no more could be kept than `split` has, or where not even one fits.

    Memory is the largest of straight lines over the number of graphs; the last one, which is the steepest, is followed down.
    """
    num = split.num_micro_batches
    if not task.compares_whole_batch or not split.may_keep_more_graphs:
        return None

    def need(kept: int) -> int:
        return _peak(model, plan, task, replace(split, kept_graphs=kept))

    kept, needed = num, need(num)
    if needed > limit:
        graph = needed - need(num - 1)
        kept = max(1, num - -(-(needed - limit) // graph))
        while (needed := need(kept)) > limit and kept > 1:
            kept -= 1
    if needed > limit:
        return None
    return GraphsThatFit(kept, needed, _cached_cost(kept, num) / _cached_cost(split.kept_graphs, num))


def _peak(model: nn.Module, plan: GroupPlan, task: Task, split: Split) -> int:
    """Bytes of the device at the peak of a step."""
    return device_bytes(memory_parts(dry_step(model, plan, task, split), plan, task.config))


def _cached_cost(kept: int, num: int) -> float:
    """Of a cached step, in forward and backward passes of the whole batch (docs/exact_step.md)."""
    return 1 + (1 - kept / num) / 3


def circumstances(config: RunConfig, split: Split) -> str:
    """For how many ranks and micro-batches the table is."""
    ranks = "1 rank" if split.world_size == 1 else f"{split.world_size} ranks"
    micro = "1 micro-batch" if split.num_micro_batches == 1 else f"{split.num_micro_batches} micro-batches"
    return f"{ranks}, {micro} in a step, {config.precision}"
