"""The learning-rate schedule: a pure function of the step, so there is no state to save or to restore.

Every group's rate is `base_lr x lr_scale(step)`, so the ratios between groups never change. Steps count from 0.
"""

import math

from accel_train.config.schema import ScheduleSection, interval_in_steps


def lr_scale(step: int, schedule: ScheduleSection, *, total_steps: int, steps_per_epoch: int) -> float:
    """What every base learning rate is multiplied by at `step`.

    Warmup gives (step + 1) / warmup_steps. After it, with min = min_lr_ratio and s counted from its end:
    cosine min + (1 - min) (1 + cos(pi s / S)) / 2 and linear 1 - (1 - min) s / S, where S is what remains of the run;
    step max(min, step_factor ^ (s // step_every)); cyclic a triangle from 1 down to min and up, every cycle_length.
    """
    warmup_steps = num_warmup_steps(schedule, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    since_warmup = step - warmup_steps
    lowest = schedule.min_lr_ratio
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        assert schedule.step_every is not None
        assert schedule.step_factor is not None
        drops = since_warmup // interval_in_steps(schedule.step_every, steps_per_epoch)
        return max(lowest, schedule.step_factor**drops)
    if schedule.name == "cyclic":
        assert schedule.cycle_length is not None
        length = interval_in_steps(schedule.cycle_length, steps_per_epoch)
        height = abs(1 - 2 * (since_warmup % length) / length)
        return lowest + (1 - lowest) * height
    progress = min(1.0, since_warmup / max(1, total_steps - warmup_steps))
    if schedule.name == "linear":
        return 1 - (1 - lowest) * progress
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def num_warmup_steps(schedule: ScheduleSection, total_steps: int) -> int:
    """`warmup_steps`, or `warmup_ratio` of all steps rounded up."""
    if schedule.warmup_ratio is not None:
        # Without the margin 0.07 x 100 = 7.000000000000001 would round up to 8.
        return math.ceil(schedule.warmup_ratio * total_steps - 1e-9)
    return schedule.warmup_steps or 0
