"""Some steps of a run under torch's profiler, with the phases that a rank notes anyway as named ranges in its record."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from accel_train.engine.engine import Engine
from accel_train.whereabouts import Whereabouts

Span = tuple[float, float]
"""Beginning and end, in microseconds."""
PHASE = "accel_train: "
COLLECTIVE = "accel_train, between ranks: "
WHOLE_STEP = "accel_train, whole step"
"""How ranges of ours are called in the record: a phase, a collective that the engine calls within one, all of a step."""
PHASES = {
    "waiting for data": "data",
    "preparing a batch": "data",
    "agreeing on a step": "agree",
    "forward": "forward",
    "second forward": "forward",
    "gathering outputs": "gather",
    "loss": "loss",
    "backward": "backward",
    "gradient norms": "norms",
    "optimizer step": "step",
    "logging": "log",
    "writing a checkpoint": "checkpoint",
}
"""What a rank notes of its work, and the phase that it is part of."""
COLLECTIVES = {"gather_rows": "gather", "around_ring": "gather", "exchange": "agree", "sum_": "reduce"}
"""Collectives that the engine calls itself, and their phase."""
OURS = (PHASE, COLLECTIVE, WHOLE_STEP)
WIRE = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel")
"""How the names of what moves data between ranks begin: gloo's work on the CPU, NCCL's kernels on a device."""


class RecordedWhereabouts(Whereabouts):
    """Every note also opens a range in the profiler's record, and ends the one before."""

    __slots__ = ("_collective", "_phase")

    def __init__(self, before: Whereabouts) -> None:
        super().__init__()
        self.step, self.doing = before.step, before.doing
        self._phase: record_function | None = None
        self._collective: record_function | None = None

    def begin(self, doing: str) -> None:
        self.end()
        self._phase = _opened(PHASE + PHASES.get(doing, doing))
        super().begin(doing)

    def enter(self, collective: str) -> None:
        self._collective = _opened(COLLECTIVE + COLLECTIVES.get(collective, collective))
        super().enter(collective)

    def leave(self) -> None:
        if self._collective is not None:
            self._collective.__exit__(None, None, None)
            self._collective = None
        super().leave()

    def end(self) -> None:
        """Ends the present phase, and no other begins."""
        self.leave()
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None


def _opened(name: str) -> record_function:
    opened = record_function(name)
    opened.__enter__()
    return opened


@contextmanager
def recorded_phases(engine: Engine) -> Iterator[RecordedWhereabouts]:
    """The engine notes its phases in the profiler's record meanwhile. Outside of this it never touches the profiler."""
    before = engine.whereabouts
    engine.whereabouts = RecordedWhereabouts(before)
    try:
        yield engine.whereabouts
    finally:
        engine.whereabouts.end()
        before.step = engine.whereabouts.step
        engine.whereabouts = before


def record(
    engine: Engine, take_step: Callable[[], object], num_steps: int, *, then: Callable[[], object] = lambda: None
) -> profile:
    """The profiler's record of so many steps, and of what comes after them; the device has come to their end, too."""
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # else the profiler says on standard output that it starts and stops
    activities = [ProfilerActivity.CPU]
    if engine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with recorded_phases(engine) as here, profile(activities=activities, acc_events=True) as found:
        for _ in range(num_steps):
            with record_function(WHOLE_STEP):
                take_step()
                here.end()
        then()
        here.end()
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
    return found


# Communication


def communication_shares(found: profile) -> tuple[float, float]:
    """Shares of the recorded steps in which data was under way between ranks, and in which nothing else went on meanwhile.

    What else goes on are torch's operators on the CPU, or kernels on a device.
    """
    wire: list[Span] = []
    work: list[Span] = []
    steps: list[Span] = []
    on_device = any(event.device_type == DeviceType.CUDA for event in found.events())
    for event in found.events():
        span = (event.time_range.start, event.time_range.end)
        if event.name.startswith(WIRE):
            if (event.device_type == DeviceType.CUDA) == on_device:
                wire.append(span)
        elif event.name == WHOLE_STEP and event.device_type == DeviceType.CPU:
            steps.append(span)
        elif is_work(event, on_device=on_device):
            work.append(span)
    whole = sum(end - start for start, end in steps)
    if not whole:
        return 0.0, 0.0
    under_way = union(wire)
    return length(under_way) / whole, (length(under_way) - length(overlap(under_way, union(work)))) / whole


def is_work(event: Any, *, on_device: bool) -> bool:
    """Whether this is computation: a kernel where the work is a device's, else one of torch's operators."""
    if on_device:
        return event.device_type == DeviceType.CUDA and not event.name.startswith(OURS)
    return str(event.name).startswith("aten::")


def union(spans: list[Span]) -> list[Span]:
    """The same time as spans that neither overlap nor touch, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def overlap(left: list[Span], right: list[Span]) -> list[Span]:
    """The time that two unions share."""
    shared, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            shared.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return shared


def length(spans: list[Span]) -> float:
    return sum(end - start for start, end in spans)
