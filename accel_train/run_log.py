"""What a run says: a live bar or plain lines for people, `metrics.jsonl` for machines, `run.log` for afterwards."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from accel_train.errors import UserError
from accel_train.json_text import lines_from_end, read_json
from accel_train.ledger import Ledger
from accel_train.quiet import is_quiet
from accel_train.run_lock import RunLock
from accel_train.visible import visible

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "run.log"
LOCK_FILE = "run.lock"


class RunLog:
    """Rank 0 writes; other ranks make one too and stay silent.

    A line that can't be written, on a full disk for example, does not stop training at once: `sync` says so before the next
    checkpoint, and a resume from the one before brings the lost lines back.
    """

    def __init__(self, run_dir: Path, *, is_main: bool, rank: int) -> None:
        """Raises UserError on every rank if run_dir can't be written, and on rank 0 if another process trains in it.

        Rank 0 may wait for some minutes, if that process is on another host and perhaps dead.
        """
        self.is_main = is_main
        self.rank = rank
        self.run_dir = run_dir
        self.metrics_path = run_dir / METRICS_FILE
        self.ledger = Ledger(run_dir, is_main=is_main)
        self._metrics: TextIO | None = None
        self._log: TextIO | None = None
        self.console = Console(file=sys.stdout, quiet=not is_main, highlight=False)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._failure: OSError | None = None
        self._lock: RunLock | None = None
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            if not os.access(run_dir, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if is_main:
                self._log = self._opened(LOG_FILE)
                self._lock = self._locked()
        except OSError as error:
            raise UserError(
                f"run_dir: {run_dir} can't be written: {error.strerror}. Choose another folder, or mend this one.",
                code="AT305",
            ) from error

    def rewind(self, step: int) -> None:
        """Drops metrics of later steps and a torn last line, so that a resumed run goes on as if it had not been killed.

        The ledger too, the end of whose chain is checked up to there. Both are read from their end, so the resume of a long
        run costs what that of a short one does.
        """
        if not self.is_main:
            return
        if complaint := self.ledger.rewind(step):
            self.warn(f"{complaint}. Training goes on; `accel-train verify --resume` will not trust what lies before.")
        if self.metrics_path.exists():
            with self.metrics_path.open("r+b") as file:
                file.truncate(_end_of_step(self.metrics_path, step))
                os.fsync(file.fileno())
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = self._opened(METRICS_FILE)

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one line to metrics.jsonl."""
        if self._metrics is not None:
            self._write(self._metrics, json.dumps({"step": step, "split": split, **values}) + "\n")

    def sync(self) -> None:
        """Forces the metrics and the ledger to disk. Raises OSError if a line was lost since the run started.

        If run_dir was removed under the run, the files are made anew and what is missing is said.
        """
        if self._failure is not None:
            raise self._failure
        if self._metrics is None or self._log is None or self._lock is None:
            return
        self._lock.check()
        if not self.metrics_path.exists():
            self._close_files()
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._metrics, self._log = self._opened(METRICS_FILE), self._opened(LOG_FILE)
            self._lock.release()
            self._lock = self._locked()
            self.warn(f"{self.metrics_path} was removed while the run was writing to it; earlier lines are lost.")
        os.fsync(self._metrics.fileno())
        self.ledger.sync()

    def say(self, message: str, *, is_result: bool = False) -> None:
        """One line from rank 0, on the terminal and in run.log; with --quiet on the terminal only a result or a warning."""
        if self.is_main:
            if is_result or not is_quiet() or message.startswith("warning:"):
                self._print(visible(message), markup=False, soft_wrap=True)
            self.note(message)

    def note(self, message: str) -> None:
        """A line in run.log alone, for what the terminal is told in another way."""
        if self._log is not None:
            self._write(self._log, f"{datetime.now():%Y-%m-%d %H:%M:%S} {visible(message)}\n")

    def show(self, thing: RenderableType) -> None:
        """A table or another rich object from rank 0."""
        if self.is_main and self._log is not None:
            if not is_quiet():
                self._print(thing)
            drawing = io.StringIO()
            # Else a notebook would show what is meant for the file.
            Console(file=drawing, width=140, color_system=None, force_jupyter=False).print(thing)
            self._write(self._log, drawing.getvalue())

    def warn(self, message: str) -> None:
        """A line from any rank, marked with it: other ranks speak only when they have something of their own to say."""
        if self.is_main:
            self._print(f"[yellow]warning:[/yellow] {escape(visible(message))}", soft_wrap=True)
            self.note(f"warning: {message}")
        else:
            print(f"rank {self.rank}: warning: {visible(message)}", file=sys.stderr, flush=True)

    def start_progress(self, total_steps: int, done: int) -> None:
        """A live bar on a terminal; in a file, `progress` writes plain lines instead."""
        if self.is_main and self.console.is_terminal and not self.console.is_dumb_terminal and not is_quiet():
            self._progress = _Bar(
                TextColumn("[bold]step"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
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
            readings = None if summary is None else summary.partition("  ")[2]  # the bar says which step it is
            self._progress.update(self._bar, completed=step, description=readings)
        if summary is not None and self.is_main:
            if self._progress is None and not is_quiet():
                self._print(summary, markup=False, soft_wrap=True)
            self.note(summary)

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        self.stop_progress()
        self.ledger.close()
        self._close_files()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_files(self) -> None:
        for file in (self._metrics, self._log):
            if file is not None:
                with suppress(OSError):  # what could not be written was said by `sync`
                    file.close()

    def _locked(self) -> RunLock:
        what = f"run_dir: another process is training in {self.run_dir}"
        try:
            return RunLock(self.run_dir / LOCK_FILE, what=what, say=self.say)
        except UserError:
            self._close_files()
            raise

    def _opened(self, name: str) -> TextIO:
        return (self.run_dir / name).open("a", encoding="utf-8")

    def _print(self, thing: RenderableType, **options: Any) -> None:
        # A terminal that is gone, or a full disk under the output, must not end training; run.log says it too.
        with suppress(OSError):
            self.console.print(thing, **options)

    def _write(self, file: TextIO, text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            self._failure = self._failure or error


class _Bar(Progress):
    """Over the readings of the last log step, for which a narrow terminal has no room beside the bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text("\n".join(fitted(task.description.split("  "), self.console.width)))


def fitted(parts: Sequence[str], width: int) -> list[str]:
    """Lines of whole parts, two spaces between them. A part alone may be wider than `width`."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}  {part}"
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _end_of_step(path: Path, step: int) -> int:
    """Where the last whole metrics line of that step or an earlier one ends. Steps go up; lines after it don't count."""
    if step >= 0:
        for start, line in lines_from_end(path):
            if line.endswith(b"\n") and _step_of(line) <= step:
                return start + len(line)
    return 0


def _step_of(line: bytes) -> float:
    """The step of a metrics line; a torn line belongs to no step."""
    try:
        row: dict[str, Any] = read_json(line)
        return float(row["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
