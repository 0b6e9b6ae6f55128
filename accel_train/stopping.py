"""What asks a run to stop between two steps: a signal, a file in its folder, or the clock.

Any rank may be sent a signal; rank 0 alone looks at the file and the clock. The loop agrees on it over all ranks.
"""

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOP_FILE = "STOP"
BY_FILE, BY_MAX_HOURS, BY_END_OF_JOB = 1001, 1002, 1003
"""Reasons beside the numbers of signals."""
SPARE_SECONDS = 30.0
"""Between the end of the last save and a deadline: to leave, and because clocks and schedulers are not exact."""
UNSEEN_SAVE_SECONDS = 60.0
"""How long a save is thought to take before this process has seen one."""


class StopRequest:
    """Whether this rank is asked to stop, and how much time stopping takes."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.started: set[int] = set()
        """Process groups that this process has started, which a second SIGINT asks to end before it leaves."""
        self._file: Path | None = None
        self._end_by_hours = math.inf
        self._end_of_job = math.inf
        self._last_boundary: float | None = None
        self._last_look = -math.inf
        self._longest_step = 0.0
        self._longest_save: float | None = None
        self._saving = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over; a second SIGINT leaves at once."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            for group in self.started:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGTERM)
            os._exit(130)
        self.signal = signal.Signals(number)

    def watch(self, run_dir: Path, max_hours: float | None) -> list[str]:
        """From now on heeds the file STOP in the folder and the clock. Rank 0 alone. Returns what the log is to say."""
        now = time.monotonic()
        self._file = run_dir / STOP_FILE
        said = []
        if max_hours is not None:
            self._end_by_hours = now - process_age() + 3600 * max_hours
            said.append(f"max_hours: this start ends by {_clock(self._end_by_hours - now)}")
        self._end_of_job = now + seconds_left_of_slurm_job()
        if self._end_of_job < math.inf:
            said.append(f"this Slurm job ends at {_clock(self._end_of_job - now)}; a checkpoint will be written before")
        return said

    def reason(self) -> int:
        """Between two steps, once on every rank: why this rank has to stop, as a number for `in_words`; 0 if it has not.

        The clock is heeded after the first step, so that every start goes at least one step further.
        """
        now = time.monotonic()
        is_first = self._last_boundary is None
        if self._last_boundary is not None:
            self._longest_step = max(self._longest_step, now - self._last_boundary - self._saving)
        self._last_boundary, self._saving = now, 0.0
        if self.signal is not None:
            return self.signal
        if self._file is not None and now - self._last_look >= 1:  # often enough, even for a slow file system
            self._last_look = now
            if self._file.exists():
                return BY_FILE
        return 0 if is_first else self._out_of_time(now)

    def _out_of_time(self, now: float) -> int:
        save = UNSEEN_SAVE_SECONDS if self._longest_save is None else self._longest_save
        ready = now + self._longest_step + save + SPARE_SECONDS
        if self._end_by_hours < ready:
            return BY_MAX_HOURS
        if self._end_of_job < ready:
            self._end_of_job = now + seconds_left_of_slurm_job()  # the job may have been given more time
            if self._end_of_job < ready:
                return BY_END_OF_JOB
        return 0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around each save: how long saves take decides when the last one has to begin."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._saving += seconds
        self._longest_save = max(self._longest_save or 0.0, seconds)

    def saves_take(self, seconds: float | None) -> None:
        """How long it takes until all is saved, where that is more than training stood still for it. None: not known."""
        if seconds is not None:
            self._longest_save = max(self._longest_save or 0.0, seconds)

    def remove_file(self) -> None:
        """The file was obeyed: the next start shall train."""
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


def in_words(reason: int) -> str:
    """A reason other than 0, for a sentence that begins with `stopped by`."""
    files_and_clocks = {
        BY_FILE: f"the file {STOP_FILE}",
        BY_MAX_HOURS: "max_hours",
        BY_END_OF_JOB: "the end of the Slurm job",
    }
    return files_and_clocks.get(reason) or signal.Signals(reason).name


def process_age() -> float:
    """Seconds since this process was started: what it imported and built counts too."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def seconds_left_of_slurm_job() -> float:
    """Until the time limit of the Slurm job that this process runs in; infinite outside of Slurm and without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return math.inf
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the job's own number may mean the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if (squeue := shutil.which("squeue")) is not None:
        with suppress(subprocess.TimeoutExpired, OSError, ValueError):
            asked = subprocess.run(
                [squeue, "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, timeout=20, check=False
            )
            if asked.returncode == 0:
                end = datetime.strptime(asked.stdout.strip(), "%Y-%m-%dT%H:%M:%S")  # local time; NONE has no format
                return end.timestamp() - time.time()
    if end_time := os.environ.get("SLURM_JOB_END_TIME"):  # from Slurm 23.02 on
        return float(end_time) - time.time()
    return math.inf


def _clock(seconds_from_now: float) -> str:
    return f"{datetime.fromtimestamp(time.time() + seconds_from_now):%Y-%m-%d %H:%M}"
