"""One trial: `accel-train train` in a process of its own, watched through the metrics that it writes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accel_train.errors import DONE, OUTCOME_FILE, Stopped
from accel_train.run_log import METRICS_FILE
from accel_train.stopping import STOP_FILE, StopRequest

OUTPUT, OUTCOME = "sweep_trial.log", "sweep_trial.outcome"
"""All that the trial's processes print, and the one line that says how they ended."""
POLL_SECONDS = 0.5
LONGEST_REASON = 400
"""Characters."""
EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b(?:: .*|:?$))")
LAUNCHERS_OWN = re.compile(r".*\b(?:ChildFailedError|CalledProcessError)\b")


@dataclass(frozen=True, slots=True)
class Outcome:
    state: Literal["complete", "pruned", "failed", "stopped"]
    """`stopped`: asked to stop from outside, with a checkpoint; the trial is not over."""
    reason: str = ""
    """Of a failure, in the trial's own words."""


class ScoreReader:
    """The evaluations of a run as they come, from its metrics.jsonl."""

    def __init__(self, run_dir: Path, split: str, score: str) -> None:
        self._path = run_dir / METRICS_FILE
        self._split, self._score = split, score
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self.scores: list[tuple[int, float]] = []
        """(step, score) of each evaluation after training has begun: before it all trials are alike."""

    def read(self) -> bool:
        """Reads the whole lines that are new, and says whether there was an evaluation among them.

        A resumed run puts another file in place of the old one, with what came after its checkpoint cut off: starts over.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != self._file or about.st_size < self._offset:
                self._file, self._offset, self.scores = (about.st_dev, about.st_ino), 0, []
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        before = len(self.scores)
        for line in whole.splitlines():
            row = json.loads(line)
            if row["split"] == self._split and row["step"] > 0 and self._score in row:
                self.scores.append((row["step"], row[self._score]))
        return len(self.scores) > before


def train_command(launch: str | None, config: Path) -> list[str]:
    started = [sys.executable] if launch is None else shlex.split(launch)
    return [*started, "-m", "accel_train", "train", str(config)]


def run_trial(
    command: list[str],
    run_dir: Path,
    reader: ScoreReader,
    *,
    behind: Callable[[list[tuple[int, float]]], bool],
    stop: StopRequest,
    keep_open: int,
    has_launcher: bool,
) -> Outcome:
    """Runs the command to its end. `behind` hears all evaluations so far and says whether to end the trial early.

    The descriptor `keep_open` stays open in the process.
    """
    for name in (STOP_FILE, OUTCOME):
        (run_dir / name).unlink(missing_ok=True)
    asked: Literal["pruned", "stopped"] | None = None
    with (run_dir / OUTPUT).open("ab") as output:
        began = output.tell()
        # A session of its own: Ctrl-C reaches the worker alone, which passes it on.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {OUTCOME_FILE: str(run_dir / OUTCOME)},
            start_new_session=True,
            pass_fds=[keep_open],
        )
    code = None
    stop.started.add(process.pid)
    try:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SECONDS)
            is_behind = reader.read() and behind(reader.scores)
            if code is None and asked is None and (stop.signal is not None or is_behind):
                asked = "stopped" if stop.signal is not None else "pruned"
                ask_to_stop(process, run_dir, has_launcher=has_launcher)
    finally:
        if code is None:  # what went wrong is the worker's; the trial must not train on without one
            ask_to_stop(process, run_dir, has_launcher=has_launcher)
            process.wait()
        stop.started.discard(process.pid)
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    with (run_dir / OUTPUT).open("rb") as output:
        output.seek(began)
        printed = output.read().decode(errors="replace")
    return _outcome(run_dir, code, asked, stop, printed)


def _outcome(
    run_dir: Path, code: int, asked: Literal["pruned", "stopped"] | None, stop: StopRequest, printed: str
) -> Outcome:
    """How a trial ended, by the program's own word if it left one: launchers replace exit codes."""
    said, message = "", ""
    with suppress(OSError):
        said, _, message = (run_dir / OUTCOME).read_text(encoding="utf-8").strip().partition(" ")
    if said == DONE or (not said and code == 0):
        return Outcome("complete")
    if asked == "pruned":
        return Outcome("pruned")
    if said == Stopped.outcome or stop.signal is not None:
        return Outcome("stopped")
    return Outcome("failed", _short(message) if message else f"{in_words(code)}: {last_words(printed)}")


def ask_to_stop(process: subprocess.Popen[bytes], run_dir: Path, *, has_launcher: bool) -> None:
    """Asks for a checkpoint and an end. A launcher would kill its ranks soon after a signal, so the file must do."""
    try:
        (run_dir / STOP_FILE).touch()
    except OSError:
        has_launcher = False  # on a full disk the signal must do
    if not has_launcher:
        process.send_signal(signal.SIGTERM)


def in_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def last_words(output: str) -> str:
    """For a program that ended without a word of its own: its last exception that is not a launcher's, or its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [found[1] for line in lines if (found := EXCEPTION.match(line)) and not LAUNCHERS_OWN.match(found[1])]
    if errors or lines:
        return _short([*lines[-1:], *errors][-1])
    return "it printed nothing"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
