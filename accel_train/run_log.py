"""What a run says: a live bar or plain lines for people, `metrics.jsonl` for machines, `run.log` for afterwards."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Rank 0 writes; other ranks make one too and stay silent."""

    def __init__(self, run_dir: Path, *, is_main: bool, rank: int) -> None:
        self.is_main = is_main
        self.rank = rank
        self.metrics_path = run_dir / METRICS_FILE
        self._metrics: TextIO | None = None
        self._log: TextIO | None = None
        self.console = Console(file=sys.stdout, quiet=not is_main, highlight=False)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        if is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._log = (run_dir / "run.log").open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drops metrics of later steps and a torn last line, so that a resumed run goes on as if it had not been killed."""
        if not self.is_main:
            return
        if self.metrics_path.exists():
            kept = [
                line for line in self.metrics_path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step
            ]
            aside = self.metrics_path.with_suffix(".rewound")
            with aside.open("w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.metrics_path)
        self._metrics = self.metrics_path.open("a", encoding="utf-8")

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one line to metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._metrics.flush()

    def say(self, message: str) -> None:
        """One line from rank 0, on the terminal and in run.log."""
        if self.is_main:
            self.console.print(message, markup=False, soft_wrap=True)
            self._write(message)

    def show(self, thing: RenderableType) -> None:
        """A table or another rich object from rank 0."""
        if self.is_main and self._log is not None:
            self.console.print(thing)
            Console(file=self._log, width=140, color_system=None).print(thing)
            self._log.flush()

    def warn(self, message: str) -> None:
        """A line from any rank, marked with it: other ranks speak only when they have something of their own to say."""
        if self.is_main:
            self.console.print(f"[yellow]warning:[/yellow] {_escaped(message)}", soft_wrap=True)
            self._write(f"warning: {message}")
        else:
            print(f"rank {self.rank}: warning: {message}", file=sys.stderr, flush=True)

    def start_progress(self, total_steps: int, done: int) -> None:
        """A live bar on a terminal; in a file, `progress` writes plain lines instead."""
        if self.is_main and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]step"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self._bar = self._progress.add_task("", total=total_steps, completed=done)
            self._progress.start()

    def progress(self, step: int, summary: str | None) -> None:
        """Moves the bar; `summary` is given at log steps."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=step, description=summary)
        if summary is not None and self.is_main:
            if self._progress is None:
                self.console.print(summary, markup=False, soft_wrap=True)
            self._write(summary)

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        self.stop_progress()
        for file in (self._metrics, self._log):
            if file is not None:
                file.close()

    def _write(self, message: str) -> None:
        if self._log is not None:
            self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
            self._log.flush()


def _step_of(line: str) -> float:
    """The step of a metrics line; a torn line belongs to no step."""
    try:
        row: dict[str, Any] = json.loads(line)
        return float(row["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def _escaped(message: str) -> str:
    return message.replace("[", r"\[")
