"""How far a command has come, on stderr: a live bar on a terminal, now and then a plain line elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from accel_train.quiet import is_quiet

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class RowProgress:
    """A context: `advance` counts rows, or what `unit` says, of `total`, if that is known. Only the main rank shows it.

    Standard output stays free for results, and the bar vanishes at the end. With --quiet nothing is shown.
    """

    def __init__(self, what: str, total: int | None, *, done: int = 0, shown: bool, unit: str = "rows") -> None:
        self.unit = unit
        self.what, self.total, self.done = what, total, done
        self._done_before = done
        self._shown = shown and not is_quiet()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "RowProgress":
        console = Console(file=sys.stderr)
        if self._shown and console.is_terminal and not console.is_dumb_terminal:
            rate = TextColumn("{task.fields[rate]}")
            columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"),)
            if self.total is None:
                columns = (*columns, TextColumn("{task.completed:,} " + self.unit), rate, TimeElapsedColumn())
            else:
                count = MofNCompleteColumn(table_column=Column(no_wrap=True))  # so a narrow terminal shortens the bar
                left = TextColumn("left"), TimeRemainingColumn(table_column=Column(no_wrap=True))
                columns = (*columns, BarColumn(), count, rate, *left)
            # Else rich would send to the terminal what is meant for a file or a pipe.
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def advance(self, rows: int = 1) -> None:
        self.done += rows
        if not self._shown:
            return
        now = time.monotonic()
        per_second = (self.done - self._done_before) / max(now - self._started, 1e-9)
        rate = self._rate(per_second)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(rate, per_second), file=sys.stderr, flush=True)

    def _rate(self, per_second: float) -> str:
        if per_second < 1:
            return f"{1 / max(per_second, 1e-9):.1f} s each"
        return f"{per_second:.{0 if per_second >= 100 else 1}f} {self.unit}/s"

    def _line(self, rate: str, per_second: float) -> str:
        if self.total is None:
            return f"{self.what}: {self.done}, {rate}"
        left = duration((self.total - self.done) / per_second) if per_second else "unknown time"
        return f"{self.what}: {self.done} of {self.total}, {rate}, {left} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def counted(items: Iterable[Item], what: str, *, shown: bool, unit: str = "records") -> Iterator[Item]:
    """Passes items through, of which there are nobody knows how many, and counts them."""
    with RowProgress(what, None, shown=shown, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
