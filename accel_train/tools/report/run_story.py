"""What run.log tells of a run's life: its starts, how far it came, what happened on the way and how it ended."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

Kind = Literal[
    "started", "resumed", "skipped", "rolled back", "phase", "warning", "advice", "changed", "stopped", "ended", "done"
]

STAMPED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
TAKEN = re.compile(r"step (\d+)/(\d+)  ")
"""A line at a log step."""
TRAINS = re.compile(r"step \d+/\d+  |checkpoint step_|resuming from |done: |ended, (?:stopped|failed): ")
"""Lines that only a process that trains writes; others may come from a start that was refused."""
AT_STEP = re.compile(r"\b(?:at|after) step (\d+)(?: of (\d+))?")
KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("started", re.compile(r"engine \w+ \(\w+\) on \d+ x ")),
    ("resumed", re.compile(r"resuming from .* at step (?P<step>\d+) of (?P<total>\d+)")),
    ("skipped", re.compile(r"warning: step (?P<step>\d+) is skipped by all ranks")),
    ("rolled back", re.compile(r"going back to .* after step (?P<step>\d+);")),
    ("phase", re.compile(r"phase .* begins at step (?P<step>\d+)$")),
    ("warning", re.compile(r"warning: (?:step (?P<step>\d+):)?")),
    ("advice", re.compile(r"advice: ")),
    ("changed", re.compile(r"changed since the checkpoint: ")),
    ("stopped", re.compile(r"ended, stopped: ")),
    ("ended", re.compile(r"ended, (?:failed|refused): ")),
    ("done", re.compile(r"done: (?P<step>\d+) steps|stopping early: ")),
)
INCIDENTS: tuple[Kind, ...] = ("resumed", "skipped", "rolled back", "phase", "warning", "changed", "stopped", "ended")
"""What is listed; the rest is told elsewhere on the page."""
LONGEST = 2000
"""Characters of a line that are kept."""


@dataclass(frozen=True, slots=True)
class Event:
    kind: Kind
    when: datetime
    text: str
    step: int | None
    """The step that the line names, or the last one taken before it."""


@dataclass(slots=True)
class Start:
    """One process after another may have trained in the folder; this is one of them."""

    first: datetime
    last: datetime
    """Of its last line, so far."""
    first_step: int = 0
    last_step: int = 0

    @property
    def seconds(self) -> float:
        return max(0.0, (self.last - self.first).total_seconds())


@dataclass(slots=True)
class Story:
    starts: list[Start] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    step: int = 0
    """The last one that the log names."""
    total_steps: int | None = None
    taken: list[tuple[datetime, int]] = field(default_factory=list)
    """First and last log step of the last start: what is left is told from their pace."""

    @property
    def seconds(self) -> float:
        """How long processes trained here, without the time between them."""
        return sum(start.seconds for start in self.starts)

    @property
    def last_event(self) -> Event | None:
        return self.events[-1] if self.events else None

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last start."""
        if self.total_steps is None or len(self.taken) < 2 or self.taken[-1][1] <= self.taken[0][1]:
            return None
        (began, first), (came, last) = self.taken
        return (came - began).total_seconds() / (last - first) * (self.total_steps - last)

    def of_kind(self, *kinds: Kind) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]


def read_story(path: Path) -> Story:
    """An empty story where there is no log. Lines that say nothing of the above are passed over."""
    story = Story()
    if not path.exists():
        return story
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if stamped := STAMPED.match(line[:LONGEST]):
                try:
                    when = datetime.fromisoformat(stamped[1])
                except ValueError:
                    continue
                _tell(story, when, stamped[2])
    return story


def _tell(story: Story, when: datetime, text: str) -> None:
    if story.starts and TRAINS.match(text):
        story.starts[-1].last = when
    if taken := TAKEN.match(text):
        _took(story, when, int(taken[1]), int(taken[2]))
        return
    for kind, pattern in KINDS:
        if found := pattern.match(text):
            named = found.groupdict()
            place = named.get("step") or ((at := AT_STEP.search(text)) and at[1])
            step = int(place) if place else story.step
            if kind == "started":
                story.starts.append(Start(when, when))
                story.taken = []
                return
            if kind == "resumed":
                _resumed(story, step, int(named["total"]))
            if kind == "stopped":
                story.step = max(story.step, step)
            if kind == "done" and named["step"]:
                story.total_steps = story.step = step
            story.events.append(Event(kind, when, text, step))
            return


def _took(story: Story, when: datetime, step: int, total: int) -> None:
    story.step, story.total_steps = step, total
    story.taken = [*story.taken[:1], (when, step)]
    if story.starts:
        story.starts[-1].last_step = step


def _resumed(story: Story, step: int, total: int) -> None:
    story.step, story.total_steps = step, total
    if story.starts:
        story.starts[-1].first_step = story.starts[-1].last_step = step
