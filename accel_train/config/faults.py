"""What `--inject` understands: a list of faults, each with its rank, its moment and its step. Nothing else is accepted.

kill:rank=1@37,nan:rank=0@12,slow:rank=1:0.5s,disk-full@60,unreadable-sample:17
"""

import difflib
import re
import signal
from dataclasses import dataclass
from typing import Literal, get_args

from accel_train.errors import UserError

Moment = Literal["step", "update", "evaluation", "phase", "start", "write", "publish", "link", "prune"]
MOMENTS: dict[Moment, str] = {
    "step": "before the step is taken",
    "update": "between its gradient and its update",
    "evaluation": "after the evaluation at that step, before its scores are written",
    "phase": "where a phase begins at that step",
    "start": "in a start that goes on from that step, before the metrics are rewound",
    "write": "in the save of that step, when the rank's part is written",
    "publish": "before the checkpoint gets its name",
    "link": "after it has its name, before `latest` and `best` point at it",
    "prune": "after that, before old checkpoints are removed",
}
ON_RANK_0 = ("publish", "link", "prune")
"""Moments that no other rank passes through."""
SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "USR1": signal.SIGUSR1}
FAULT = re.compile(r"(?P<kind>[a-z-]+)(?P<parts>(?::[^:@,]+)*)(?:@(?P<step>[0-9]{1,12}))?", re.ASCII)
SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)s", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of fault is written with."""

    meaning: str
    needs: tuple[Literal["rank", "step", "value"], ...]
    moments: tuple[Moment, ...]
    """The first one is meant where none is given; one alone can't be chosen."""
    example: str
    may_have_rank: bool = False
    once: bool = True
    """Fires once in a run directory, since the process does not outlive it; else once in each process that meets it."""


KINDS = {
    "kill": Kind("SIGKILL to the rank", ("rank", "step"), get_args(Moment), "kill:rank=1@37"),
    "signal": Kind(
        "TERM, INT or USR1 to the rank", ("rank", "step", "value"), get_args(Moment), "signal:TERM:rank=1@5"
    ),
    "hang": Kind("the rank sleeps for ever", ("rank", "step"), get_args(Moment), "hang:rank=1@9"),
    "kill-worker": Kind(
        "SIGKILL to a loader process of the rank", ("rank", "step"), ("step",), "kill-worker:rank=0@20"
    ),
    "torn-checkpoint": Kind(
        "half of the rank's part is written, then SIGKILL",
        ("step",),
        ("write",),
        "torn-checkpoint@50",
        may_have_rank=True,
    ),
    "disk-full": Kind(
        "half of the rank's part is written, then the disk is full",
        ("step",),
        ("write",),
        "disk-full@60",
        may_have_rank=True,
    ),
    "corrupt-checkpoint": Kind(
        "a byte of the published checkpoint changes, then SIGKILL to rank 0",
        ("step",),
        ("prune",),
        "corrupt-checkpoint@50",
    ),
    "nan": Kind("what the rank's model gives becomes NaN", ("rank", "step"), ("step",), "nan:rank=0@12", once=False),
    "slow": Kind("the rank sleeps before each step", ("rank", "value"), ("step",), "slow:rank=1:0.5s", once=False),
    "unreadable-sample": Kind(
        "a row of the training split can't be read", ("value",), ("step",), "unreadable-sample:17", once=False
    ),
}


@dataclass(frozen=True, slots=True)
class Fault:
    text: str
    """As it was written."""
    kind: str
    moment: Moment
    rank: int | None = None
    """None: every rank."""
    step: int | None = None
    """Counted as in metrics.jsonl, from 1. None: every step."""
    seconds: float = 0.0
    row: int = -1
    to_send: signal.Signals | None = None

    @property
    def once(self) -> bool:
        return KINDS[self.kind].once


def read_faults(text: str) -> tuple[Fault, ...]:
    """The faults of an argument of `--inject`. Raises UserError, which names the first one that is wrong."""
    faults: list[Fault] = []
    for part in text.split(","):
        fault = _fault(part.strip())
        if fault in faults:
            raise _wrong(fault.text, "it is given twice")
        faults.append(fault)
    return tuple(faults)


def check_faults(
    faults: tuple[Fault, ...], *, world_size: int, total_steps: int, num_rows: int, num_workers: int
) -> None:
    """Refuses faults that this run can never meet. Raises UserError."""
    for fault in faults:
        if fault.rank is not None and fault.rank >= world_size:
            raise _wrong(fault.text, f"there is no rank {fault.rank}; ranks are 0 to {world_size - 1}")
        if fault.step is not None and fault.step > total_steps:
            raise _wrong(fault.text, f"the run ends at step {total_steps}")
        if fault.row >= num_rows:
            raise _wrong(fault.text, f"the training split's rows are 0 to {num_rows - 1}")
        if fault.kind == "kill-worker" and not num_workers:
            raise _wrong(fault.text, "data.num_workers is 0, so there is none to kill")


def _fault(text: str) -> Fault:
    found = FAULT.fullmatch(text)
    if found is None:
        raise _wrong(text, "a fault is written KIND[:PART...][@STEP]")
    name = found["kind"]
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        raise _wrong(
            text, f"no kind is called {name!r}. " + (f"Nearest: {near[0]}" if near else f"They are {_listed()}")
        )
    kind = KINDS[name]
    parts = _parts(text, found["parts"].split(":")[1:])
    step = None if found["step"] is None else int(found["step"])
    given = parts.keys() | ({"step"} if step is not None else set())
    allowed = {*kind.needs, *(["rank"] if kind.may_have_rank else []), *(["at"] if len(kind.moments) > 1 else [])}
    for what in ("rank", "step", "value"):
        if what in kind.needs and what not in given:
            raise _wrong(text, f"its {what} is missing; write for example {kind.example}")
    for what in sorted(given - allowed):
        raise _wrong(text, f"{name} takes no {what}; write for example {kind.example}")
    moment, rank = _moment(text, parts, kind), _rank(text, parts)
    if moment in ON_RANK_0 and "rank" in given and rank != 0:
        raise _wrong(text, f"at={moment} is on rank 0 alone; write rank=0")
    if step == 0 and moment in ("step", "update"):
        raise _wrong(text, "steps are counted from 1")
    return _with_value(Fault(text, name, moment, 0 if moment in ON_RANK_0 else rank, step), parts.get("value", ""))


def _parts(text: str, parts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "value", part
        if key not in ("rank", "at", "value"):
            raise _wrong(text, f"{key!r} is none of rank and at")
        if key in found:
            raise _wrong(text, f"its {key} is given twice")
        found[key] = value
    return found


def _moment(text: str, parts: dict[str, str], kind: Kind) -> Moment:
    for moment in kind.moments:
        if moment == parts.get("at", kind.moments[0]):
            return moment
    raise _wrong(text, f"no moment is called {parts['at']!r}; they are {', '.join(MOMENTS)}")


def _rank(text: str, parts: dict[str, str]) -> int | None:
    value = parts.get("rank", "all")
    if value == "all":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        raise _wrong(text, f"rank is {value!r}; it must be a number or all")
    return int(value)


def _with_value(fault: Fault, value: str) -> Fault:
    """The fault with what its kind alone has: a signal, a time or a row."""
    text, kind, place = fault.text, fault.kind, (fault.moment, fault.rank, fault.step)
    if kind == "signal":
        if value not in SIGNALS:
            raise _wrong(text, f"{value!r} is none of the signals {', '.join(SIGNALS)}")
        return Fault(text, kind, *place, to_send=SIGNALS[value])
    if kind == "slow":
        found = SECONDS.fullmatch(value)
        if found is None:
            raise _wrong(text, f"{value!r} is no time; write for example 0.5s")
        return Fault(text, kind, *place, seconds=float(found[1]))
    if kind == "unreadable-sample":
        if not re.fullmatch(r"[0-9]{1,12}", value, re.ASCII):
            raise _wrong(text, f"{value!r} is no row; write for example 17")
        return Fault(text, kind, *place, row=int(value))
    return fault


def _listed() -> str:
    return ", ".join(KINDS)


def _wrong(text: str, what: str) -> UserError:
    return UserError(f"--inject {text!r}: {what}.")
