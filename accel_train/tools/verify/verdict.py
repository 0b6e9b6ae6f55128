"""What a reading means: which group is wrong, and which fault leaves this mark.

The marks are those of faults that have been seen: each is built in on purpose by a test.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from accel_train.tools.verify.comparison import Closeness, GroupReading, Reading

FP32_TOLERANCE = 2e-5
TOLERANCES = {"fp32": FP32_TOLERANCE, "bf16": 5e-2, "fp16": 1e-2}
"""Of gradients and losses, relative, by precision. Updates and optimizer state are float32 whatever the precision is."""
ALIGNED = 0.9999
NEAR = 0.02


@dataclass(frozen=True, slots=True)
class Tolerance:
    gradient: float
    """Relative, of every group's gradient, and of the loss."""
    update: float
    """Relative, of every group's update and optimizer state."""


def problems(reading: Reading, tolerance: Tolerance) -> list[str]:
    """A sentence for each thing that is wrong; none if the step is right."""
    found = list(reading.remarks)
    if not reading.same_samples:
        found.append("the ranks together did not take the samples of this global batch, each one once and in order")
    if reading.other_start:
        found.append(f"the launch starts from other weights than the run would: {named(reading.other_start)}")
    if _differs(*reading.losses, tolerance.gradient):
        found.append(f"the loss is {reading.losses[0]:.8g} instead of {reading.losses[1]:.8g}")
    found += _of_gradients(reading, tolerance)
    found += _of_settings(reading)
    found += _of_updates(reading, tolerance)
    if reading.moved:
        found.append(f"frozen weights moved: {named(reading.moved)}")
    if reading.other_buffers:
        found.append(f"buffers were left otherwise than by one process: {named(reading.other_buffers)}")
    return found


def wrong_groups(reading: Reading, tolerance: Tolerance) -> set[str]:
    """Names of the groups to be marked."""
    return {
        group.name
        for group in reading.groups
        if _is_off(group.gradient, tolerance.gradient)
        or _is_off(group.update, tolerance.update)
        or _is_off(group.state, tolerance.update)
        or _set_otherwise(group)
    }


def named(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _of_gradients(reading: Reading, tolerance: Tolerance) -> list[str]:
    wrong = [group for group in reading.groups if _is_off(group.gradient, tolerance.gradient)]
    temperature = reading.temperature
    if not wrong and (temperature is None or not _is_off(temperature, tolerance.gradient)):
        return []
    rest = [group.gradient_without_temperature for group in reading.groups]
    cause = _cause(reading, [found for found in rest if found is not None and _is_off(found, tolerance.gradient)])
    if not wrong:
        return [f"the gradient of the temperature: {cause}"]
    worst = max(wrong, key=lambda group: _size(group.gradient.error))
    return [
        f"the gradient of {named(group.name for group in wrong)} (worst, {worst.name}: relative error "
        f"{worst.gradient.error:.3g}, {worst.gradient.ratio:.4g} × the right length, cosine {worst.gradient.cosine:.4f}): "
        f"{cause}"
    ]


def _cause(reading: Reading, wrong: list[Closeness]) -> str:
    """The known fault that leaves such gradients. `wrong` are those of groups that are off, without the temperature."""
    ranks, cuts = reading.world_size, reading.num_micro_batches
    if not all(math.isfinite(found.error) for found in wrong):
        return "not finite. One rank's NaN becomes every rank's by the reduction: decide on all ranks before the update"
    shared = 1.0 if reading.temperature is None else reading.temperature.ratio
    if not wrong:
        return _cause_of_temperature(shared, ranks, cuts)
    if any(found.cosine < ALIGNED for found in wrong):
        return _cause_of_direction(reading)
    lengths = [found.ratio for found in wrong]
    if ranks > 1 and _all_like(lengths, 1 / ranks):
        if reading.temperature is not None and _like(shared, 1):
            return "features were gathered without gradient: towers get 1/ranks of it, and the temperature all of it"
        return "gradients are averaged over ranks where they must be summed" + _or_cuts(ranks, cuts)
    if cuts > 1 and _all_like(lengths, 1 / cuts):
        return "accumulation divides by the number of micro-batches a loss that was divided already"
    if ranks > 1 and _all_like(lengths, ranks):
        return "gradients are multiplied by the number of ranks once too often"
    if cuts > 1 and _all_like(lengths, cuts):
        return "gradients are added up once for each micro-batch"
    if all(length == 0 for length in lengths):
        return "no gradient arrived: the accumulation boundary was not set on the last backward pass"
    return "no known fault leaves this mark, if it is not rounding (--tolerance)"


def _cause_of_temperature(ratio: float, ranks: int, cuts: int) -> str:
    if not math.isfinite(ratio):
        return "the temperature's gradient is not finite"
    counted = [what for what, number in (("micro-batch", cuts), ("rank", ranks)) if number > 1 and _like(ratio, number)]
    if counted:
        return f"the temperature's is counted once for each {' or '.join(counted)}; it belongs to the whole batch, once"
    return f"the temperature's is {ratio:.4g} × the right one: treat it as an output of the model, like the features"


def _cause_of_direction(reading: Reading) -> str:
    if _differs(*reading.losses, 1e-3):
        return "the loss was taken over a part of the batch: each rank, or each micro-batch, compared its own samples alone"
    # The temperature's gradient comes from the first pass alone, so other draws in the second one leave it right.
    if reading.draws and (reading.temperature is None or _like(reading.temperature.ratio, 1)):
        return "the second pass drew other random numbers than the first: the random state was not replayed"
    if reading.num_micro_batches > 1:
        return (
            "micro-batches are missing from the sum or reduced apart: the accumulation boundary belongs to the last "
            "backward pass, and to no other"
        )
    return "gradients of some ranks are missing from the sum"


def _or_cuts(ranks: int, cuts: int) -> str:
    return ", or accumulation divides by the micro-batches once too often" if ranks == cuts else ""


def _of_settings(reading: Reading) -> list[str]:
    found = []
    for group in reading.groups:
        asked, applied = group.lr
        if not _like(applied, asked, 1e-9):
            times = applied / asked if asked else math.inf
            note = (
                f": {times:g} × , the number of ranks: a scheduler or a wrapper multiplies it"
                if reading.world_size > 1 and _like(times, reading.world_size)
                else ""
            )
            found.append(
                f"{group.name}: the learning rate asked for is {asked:.6g}, the engine has {applied:.6g}{note}"
            )
        if group.weight_decay[0] != group.weight_decay[1]:
            asked, applied = group.weight_decay
            found.append(f"{group.name}: weight decay asked for is {asked:g}, the engine has {applied:g}")
        if group.max_grad_norm[0] != group.max_grad_norm[1]:
            found.append(
                f"{group.name}: max_grad_norm is {group.max_grad_norm[0]}, the engine has {group.max_grad_norm[1]}"
            )
    return found


def _of_updates(reading: Reading, tolerance: Tolerance) -> list[str]:
    wrong = [
        group
        for group in reading.groups
        if _is_off(group.update, tolerance.update) or _is_off(group.state, tolerance.update)
    ]
    if not wrong:
        return []
    worst = max(wrong, key=lambda group: max(_size(group.update.error), _size(group.state.error)))
    return [
        f"from this gradient torch's optimizer makes another update of {named(group.name for group in wrong)} (worst, "
        f"{worst.name}: relative error {worst.update.error:.3g}, {worst.update.ratio:.4g} × the right length; of the "
        f"optimizer's state {worst.state.error:.3g}, {worst.state.ratio:.4g} ×): {_cause_of_update(reading, wrong)}"
    ]


def _cause_of_update(reading: Reading, wrong: list[GroupReading]) -> str:
    if not all(math.isfinite(group.update.error + group.state.error) for group in wrong):
        return "not finite"
    seen = [(g.state if _is_off(g.state, 10 * FP32_TOLERANCE) else g.update).ratio for g in wrong]
    if not _like(reading.clipped_norm, 1) and all(_like(ratio * reading.clipped_norm, 1) for ratio in seen):
        return "the engine clips the gradient to norm 1.0 by itself; set its own clipping to 0"
    lengths = [group.update.ratio for group in wrong]
    if reading.world_size > 1 and _all_like(lengths, reading.world_size):
        return "the learning rate in force is multiplied by the number of ranks"
    if all(length == 0 for length in lengths):
        return "the weights did not move"
    return "clipping, weight decay or the optimizer is not the one that was asked for"


def _set_otherwise(group: GroupReading) -> bool:
    pairs = (group.weight_decay, group.max_grad_norm)
    return not _like(group.lr[1], group.lr[0], 1e-9) or any(asked != applied for asked, applied in pairs)


def _is_off(value: Closeness, tolerance: float) -> bool:
    return not value.error <= tolerance  # a NaN is off


def _differs(found: float, wanted: float, tolerance: float) -> bool:
    return not abs(found - wanted) <= tolerance * max(abs(wanted), 1e-3)


def _like(found: float, wanted: float, tolerance: float = NEAR) -> bool:
    return math.isclose(found, wanted, rel_tol=tolerance)


def _all_like(found: list[float], wanted: float) -> bool:
    return all(_like(value, wanted) for value in found)


def _size(value: float) -> float:
    return value if math.isfinite(value) else math.inf
