"""What a page says of one run before any chart, as plain values: for the page's head, for tables and for --json."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accel_train.tools.report.record import SKIPPED, Record
from accel_train.tools.report.settings import rows_of

TAIL = 0.1
"""The last values of a run: this share of its lines."""
MUCH_WAITING = 0.15
"""Share of the time; above it the loader is worth a look."""


@dataclass(frozen=True, slots=True)
class Facts:
    name: str
    folder: str
    status: str
    ending: str
    task: str
    seed: int | None
    step: int
    total_steps: int | None
    epoch: float | None
    seconds: float
    seconds_left: float | None
    score: str | None
    """The score that judges the run."""
    best_value: float | None
    best_step: int | None
    best_scores: dict[str, float]
    """All scores of the best evaluation."""
    last_scores: dict[str, float]
    first_loss: float | None
    last_loss: float | None
    """Mean of the last tenth of the log lines."""
    samples_per_second: float | None
    """Median."""
    waiting_for_data: float | None
    """Mean share of the time."""
    memory_gib: float | None
    num_starts: int
    num_skipped: int
    num_rollbacks: int
    num_parameters: int | None
    """That train, in the last phase."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def facts_of(record: Record) -> Facts:
    story, train, config = record.story, record.train, record.settings.config
    _, losses = train.given("loss")
    best = record.best
    last_step = int(record.valid.steps[-1]) if len(record.valid.steps) else None
    tail = losses[-max(1, math.ceil(TAIL * len(losses))) :]
    return Facts(
        name=record.name,
        folder=str(record.folder),
        status=record.status,
        ending=record.ending.text if record.ending and record.status != "running" else "",
        task=str(record.settings.values.get("task") or "contrastive"),
        seed=config.seed if config else record.settings.values.get("seed"),
        step=max([story.step, *(int(rows.steps[-1]) for rows in record.metrics.splits.values() if len(rows.steps))]),
        total_steps=story.total_steps,
        epoch=_last(train.given("epoch")[1]),
        seconds=story.seconds,
        seconds_left=story.seconds_left if record.status == "running" else None,
        score=record.best_score,
        best_value=best[1] if best else None,
        best_step=best[0] if best else None,
        best_scores=record.scores_at(best[0]) if best else {},
        last_scores=record.scores_at(last_step) if last_step is not None else {},
        first_loss=float(losses[0]) if len(losses) else None,
        last_loss=float(tail.mean()) if len(tail) else None,
        samples_per_second=_of(np.median, train.given("samples_per_second")[1]),
        waiting_for_data=_of(np.mean, train.given("waiting_for_data")[1]),
        memory_gib=_of(np.max, train.given("memory_gib")[1]),
        num_starts=len(story.starts),
        num_skipped=len(record.metrics.split(SKIPPED).steps),
        num_rollbacks=len(story.of_kind("rolled back")),
        num_parameters=sum(group["num_parameters"] for group in record.groups[-1]["groups"]) if record.groups else None,
    )


def as_json(record: Record) -> dict[str, Any]:
    """The facts and all tables of the page. The curves are in the run's metrics.jsonl, which is JSON already."""
    config = record.settings.config
    return {
        **facts_of(record).as_dict(),
        "remarks": remarks(record),
        "series": {split: _series(record, split) for split in record.metrics.splits},
        "groups": record.groups,
        "settings": record.settings.leaves,
        "not_default": {row.key: row.value for row in rows_of(config) if not row.is_default} if config else None,
        "launches": [{"after_step": step, **launch} for step, launch in record.launches],
        "incidents": [
            {"kind": event.kind, "when": event.when.isoformat(sep=" "), "step": event.step, "text": event.text}
            for event in record.story.events
        ],
    }


def remarks(record: Record) -> list[str]:
    """What is worth knowing at once: faults of the run's files, what the run advised, and what its curves show."""
    facts = facts_of(record)
    found = list(record.complaints)
    if record.metrics.is_unfinished:
        found.append("The last line of metrics.jsonl is still being written, so it is not shown.")
    found += [event.text.removeprefix("advice: ") for event in record.story.of_kind("advice")]
    if facts.waiting_for_data is not None and facts.waiting_for_data > MUCH_WAITING:
        found.append(
            f"Training waited for data for {facts.waiting_for_data:.0%} of the time: more data.num_workers, smaller stored "
            "images or a faster disk would help."
        )
    steps, values = record.valid.given(record.best_score or "")
    after = steps[steps > (facts.best_step or 0)]
    if len(values) > 2 and len(after) >= len(values) / 3:
        since = "evaluation" if len(after) == 1 else f"{len(after)} evaluations"
        found.append(
            f"{facts.score} was best at step {facts.best_step:,} and has not been reached in the {since} since; the last "
            f"one is {values[-1]:.4g}."
        )
    return found


def _series(record: Record, split: str) -> dict[str, dict[str, float]]:
    rows = record.metrics.splits[split]
    found = {}
    for name in rows.columns:
        steps, values = rows.given(name)
        found[name] = {
            "count": len(values),
            "first": float(values[0]),
            "last": float(values[-1]),
            "min": float(values.min()),
            "max": float(values.max()),
            "last_step": int(steps[-1]),
        }
    return found


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if len(values) else None


def _of(reading: Any, values: np.ndarray) -> float | None:
    return float(reading(values)) if len(values) else None
