"""The profiler's record as tables: seconds a step by phase of the loop, and by torch's operators."""

from collections import defaultdict
from dataclasses import dataclass

from torch._C._autograd import DeviceType
from torch.profiler import profile

from accel_train.tools.profile.recording import (
    COLLECTIVE,
    OURS,
    PHASE,
    WHOLE_STEP,
    WIRE,
    Span,
    length,
    overlap,
    union,
)

ORDER = ("data", "agree", "forward", "gather", "loss", "backward", "reduce", "norms", "step", "log", "checkpoint")
LOADER = "enumerate(DataLoader)"
"""What torch calls a wait for its loader. It is no operator, and within `data`."""
ONCE = "checkpoint"
"""The phase that comes once, after the steps; the others are in every step."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds a step on one rank; those of a checkpoint are of one."""

    name: str
    calls: float
    """In a step."""
    total: float
    """From beginning to end, by the CPU's clock."""
    own: float
    """Without what other rows of the table account for within it."""
    device: float
    """Of the kernels that it started, on a GPU."""
    share: float | None
    """`own`, or on a GPU for an operator `device`, over the time of the step. None: it is not part of one."""


def phase_rows(found: profile, num_steps: int) -> list[Row]:
    """The phases, in the order in which a step goes through them; their own times add up to the step.

    Gradients that an engine reduces by itself during the backward pass are in the total of `reduce` and not in its own time:
    that is the backward pass's, which they run beside.
    """
    phases: dict[str, list[Span]] = defaultdict(list)
    collectives: dict[str, list[Span]] = defaultdict(list)
    wire: list[Span] = []
    device: dict[str, float] = defaultdict(float)
    for event in found.events():
        span = (event.time_range.start, event.time_range.end)
        if event.name.startswith(WIRE) and "reduce" in event.name.replace("_", "").lower():
            wire.append(span)
        for prefix, spans in ((PHASE, phases), (COLLECTIVE, collectives)):
            if event.device_type == DeviceType.CPU and event.name.startswith(prefix):
                name = event.name.removeprefix(prefix)
                spans[name].append(span)
                device[name] += event.device_time_total
    step = step_seconds(found, num_steps)
    rows = []
    for name in phases.keys() | collectives.keys() | ({"reduce"} if wire else set()):
        elsewhere = union([span for other, spans in collectives.items() if other != name for span in spans])
        mine = union(phases[name] + collectives[name])
        own = length(mine) - length(overlap(mine, elsewhere)) if name in phases else length(mine)
        total = length(union(mine + wire)) if name == "reduce" else length(mine)
        times = 1 if name == ONCE else num_steps
        calls = len(phases[name]) or len(collectives[name]) or len(wire)
        row = Row(
            name,
            calls / times,
            total=total / times / 1e6,
            own=own / times / 1e6,
            device=device[name] / times / 1e6,
            share=None if name == ONCE else own / times / 1e6 / step,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (*ORDER, row.name).index(row.name))


def operator_rows(found: profile, num_steps: int, top: int) -> list[Row]:
    """The operators with the largest time of their own: on a GPU that of their kernels, else the CPU's."""
    step = step_seconds(found, num_steps)
    rows = []
    for entry in found.key_averages():
        if entry.key.startswith((*OURS, LOADER)) or entry.device_type != DeviceType.CPU:
            continue
        own, device = (value / num_steps / 1e6 for value in (entry.self_cpu_time_total, entry.self_device_time_total))
        row = Row(
            entry.key,
            entry.count / num_steps,
            total=entry.cpu_time_total / num_steps / 1e6,
            own=own,
            device=device,
            share=(device or own) / step,
        )
        rows.append(row)
    on_device = any(row.device for row in rows)
    return sorted(rows, key=lambda row: -(row.device if on_device else row.own))[:top]


def step_seconds(found: profile, num_steps: int) -> float:
    """Mean of the recorded steps."""
    spans = [
        event.time_range.end - event.time_range.start
        for event in found.events()
        if event.name == WHOLE_STEP and event.device_type == DeviceType.CPU
    ]
    return sum(spans) / num_steps / 1e6
