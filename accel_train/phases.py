"""The phases of a run: which towers train from which step to which, at what rates.

A run without `phases` has one. What trains never changes inside a phase: engines go wrong in silence when `requires_grad`
moves under them, so the boundary is a checkpoint from which the run is built anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from accel_train.config.schema import (
    OptimizerSection,
    RunConfig,
    ScheduleSection,
    interval_in_steps,
    optimizer_of_phase,
)
from accel_train.errors import UserError
from accel_train.optim.lr_scaling import scaled
from accel_train.optim.param_groups import GroupPlan, plan_groups
from accel_train.optim.schedule import lr_scale


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps `start` to `end` of a run, `end` excluded."""

    name: str
    start: int
    end: int
    optimizer: OptimizerSection
    schedule: ScheduleSection
    schedule_start: int
    """The step from which the schedule counts."""
    schedule_end: int
    steps_per_epoch: int

    def lr_scale(self, step: int) -> float:
        """What every base learning rate is multiplied by at a step of the run."""
        return lr_scale(
            step - self.schedule_start,
            self.schedule,
            total_steps=self.schedule_end - self.schedule_start,
            steps_per_epoch=self.steps_per_epoch,
        )


def plan_phases(config: RunConfig, *, steps_per_epoch: int, total_steps: int) -> list[Phase]:
    """All phases in order; they cover the run without a gap. Raises UserError for one that would begin too late."""
    starts = [0]
    for section in config.phases:
        start = interval_in_steps(section.start, steps_per_epoch)
        if not starts[-1] < start < total_steps:
            raise UserError(
                f"phases.{section.name}.start: {section.start} is step {start}; it must come after step {starts[-1]}, where "
                f"the phase before begins, and before step {total_steps}, where the run ends."
            )
        starts.append(start)
    ends = [*starts[1:], total_steps]
    optimizer, schedules = config.optimizer, {0: config.schedule}
    schedules |= {i: section.schedule for i, section in enumerate(config.phases, 1) if section.schedule is not None}
    phases = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if index:
            optimizer = optimizer_of_phase(optimizer, config.phases[index - 1])
        first = max(i for i in schedules if i <= index)
        after = min((i for i in schedules if i > index), default=None)
        phases.append(
            Phase(
                name=config.phases[index - 1].name if index else "first",
                start=start,
                end=end,
                optimizer=scaled(optimizer, config.data.global_batch_size),
                schedule=schedules[first],
                schedule_start=starts[first],
                schedule_end=total_steps if after is None else starts[after],
                steps_per_epoch=steps_per_epoch,
            )
        )
    return phases


def phase_at(phases: list[Phase], step: int) -> Phase:
    """The phase that takes the step after `step` ones; the last one at the run's end."""
    return next((phase for phase in phases if step < phase.end), phases[-1])


def plan_phase_groups(
    model: nn.Module, phases: list[Phase], phase: Phase, carried_updates: Mapping[str, int] | None = None
) -> GroupPlan:
    """The groups of a phase. Parameters that joined later are groups of their own, because their optimizer state is younger.

    `model` is as built, before anything was frozen for a phase. `carried_updates` counts, by parameter, the updates behind
    optimizer state that the run began with.
    """
    first_steps = {name: -count for name, count in (carried_updates or {}).items()}
    for earlier in phases[: phases.index(phase)]:
        plan = plan_groups(model, earlier.optimizer, first_steps)
        first_steps = {
            name: first_steps.get(name, earlier.start) for group in plan.groups for name in group.param_names
        }
    for name, _ in model.named_parameters():
        first_steps.setdefault(name, phase.start)
    return plan_groups(model, phase.optimizer, first_steps)
