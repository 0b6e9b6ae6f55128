"""All that a run has left in its folder, read once."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.ledger import LEDGER_FILE
from accel_train.optim.groups_file import read_groups
from accel_train.run_lock import STALE_AFTER
from accel_train.run_log import LOCK_FILE, LOG_FILE, METRICS_FILE
from accel_train.tools.report.metrics_file import Metrics, Rows, read_metrics
from accel_train.tools.report.run_story import Event, Story, read_story
from accel_train.tools.report.settings import Settings, read_settings

Status = Literal["running", "done", "stopped", "failed", "silent"]
TRAIN, SKIPPED = "train", "skipped"
"""Splits in metrics.jsonl that are no validation split: steps that are logged, and steps without an update."""


@dataclass(slots=True)
class Record:
    folder: Path
    name: str
    settings: Settings
    metrics: Metrics
    story: Story
    launches: list[tuple[int, dict[str, Any]]]
    """What computed the steps after a step: engine, ranks, versions."""
    groups: list[dict[str, Any]]
    """Of each phase, as groups.json has them."""
    seconds_since_beat: float | None
    """Since the last sign of life of a process that trains here; None if there is none."""
    best_score: str | None
    """The score that judges the run; None if nothing is evaluated."""
    complaints: list[str] = field(default_factory=list)

    @property
    def train(self) -> Rows:
        return self.metrics.split(TRAIN)

    @property
    def valid_split(self) -> str | None:
        if self.settings.config is not None:
            return self.settings.config.data.valid_split
        return next((split for split in self.metrics.splits if split not in (TRAIN, SKIPPED)), None)

    @property
    def valid(self) -> Rows:
        return self.metrics.split(self.valid_split or "")

    @property
    def ending(self) -> Event | None:
        """How the last start ended, if it has said so."""
        last = self.story.starts[-1].first if self.story.starts else None
        ends = [
            event
            for event in self.story.of_kind("done", "stopped", "ended")
            if last is not None and event.when >= last and not event.text.startswith("stopping early")
        ]
        return ends[-1] if ends else None

    @property
    def status(self) -> Status:
        if self.seconds_since_beat is not None and self.seconds_since_beat < STALE_AFTER:
            return "running"
        if self.ending is None:
            return "silent"
        return {"done": "done", "stopped": "stopped"}.get(self.ending.kind, "failed")  # type: ignore[return-value]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the first evaluation with the highest judging score."""
        steps, values = self.valid.given(self.best_score or "")
        return (int(steps[values.argmax()]), float(values.max())) if len(values) else None

    def scores_at(self, step: int) -> dict[str, float]:
        """All scores of the evaluation at a step."""
        rows = self.valid
        places = (rows.steps == step).nonzero()[0]
        if not len(places):
            return {}
        found = {name: float(values[places[-1]]) for name, values in rows.columns.items()}
        return {name: value for name, value in found.items() if value == value}


def read_record(folder: Path) -> Record:
    """Raises UserError where no run has left anything that can be shown."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Give the run_dir of a run.")
    lacking = [name for name in ("config.yaml", METRICS_FILE) if not (folder / name).is_file()]
    if lacking:
        raise UserError(
            f"{folder} is not the folder of a run that has begun: there is no {' and no '.join(lacking)}. Give the run_dir "
            "of a run."
        )
    settings = read_settings(folder / "config.yaml")
    metrics = read_metrics(folder / METRICS_FILE)
    complaints = [metrics.complaint(folder / METRICS_FILE)]
    if settings.complaint:
        complaints.append(
            f"This version does not take the run's configuration, so what is a default can't be told: {settings.complaint}"
        )
    best_score, complaint = _best_score(settings)
    record = Record(
        folder=folder,
        name=folder.resolve().name,
        settings=settings,
        metrics=metrics,
        story=read_story(folder / LOG_FILE),
        launches=_launches(folder / LEDGER_FILE),
        groups=read_groups(folder),
        seconds_since_beat=_seconds_since_beat(folder / LOCK_FILE),
        best_score=best_score,
    )
    if best_score is None and record.valid.columns:
        record.best_score = next(iter(record.valid.columns))
    record.complaints = [line for line in (*complaints, complaint) if line]
    return record


def _best_score(settings: Settings) -> tuple[str | None, str]:
    """The judging score, and why it is not known."""
    config = settings.config
    if config is None or config.data.valid_split is None:
        return None, ""
    if config.evaluation.best_score is not None:
        return config.evaluation.best_score, ""
    from accel_train.tasks.build import task_class

    try:
        return task_class(config.task)(config).best_score, ""
    except UserError as error:
        return None, f"The first score stands for the one that judges the run, which can't be told: {error}"


def _launches(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Without the check of the chain, which is `verify --resume`'s."""
    found: list[tuple[int, dict[str, Any]]] = []
    if not path.exists():
        return found
    with path.open("rb") as file:
        for text in file:
            if b'"launch"' not in text:
                continue
            try:
                line = read_json(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("launch"), dict) and isinstance(line.get("step"), int):
                found.append((line["step"], line["launch"]))
    return found


def _seconds_since_beat(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
