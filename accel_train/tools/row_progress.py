"""How far a pass over rows, or steps, has come, on stderr: a live bar on a terminal, now and then a plain line elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class RowProgress:
    """A context: `advance` counts rows, or what `unit` says. Only the main rank shows it.

    Standard output stays free for results.
    """

    def __init__(self, what: str, total: int, *, done: int, shown: bool, unit: str = "rows") -> None:
        self.unit = unit
        self.what, self.total, self.done = what, total, done
        self._done_before = done
        self._shown = shown
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "RowProgress":
        console = Console(file=sys.stderr)
        if self._shown and console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def advance(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        rate = f"{(self.done - self._done_before) / max(now - self._started, 1e-9):.1f} {self.unit}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif self._shown and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self.what}: {self.done} of {self.total}, {rate}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
