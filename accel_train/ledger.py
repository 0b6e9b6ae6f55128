"""`ledger.jsonl`: what each step of a run was, to the last bit, so that a replay can be compared with it.

One JSON object a line. A step has the hash of its samples in their order, its losses and the gradient norm as exact
hexadecimal floats. A line with `launch` says what computed the steps after it. `chain` is the SHA-256 of the chain before
and the line without it, so a line that was changed, added or taken out breaks the chain from there on.
"""

import hashlib
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from accel_train.json_text import read_json

LEDGER_FILE = "ledger.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepTaken:
    """The last of `step` steps, as the ledger keeps it."""

    step: int
    rows: np.ndarray
    """Dataset rows of the global batch, in order."""
    num_read: int
    """How many of them could be read."""
    losses: dict[str, Tensor]
    grad_norm: float

    def line(self) -> Line:
        """Waits for the device, if the losses are still on their way."""
        return {
            "step": self.step,
            "samples": hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()[:32],
            "num_read": self.num_read,
            "losses": {name: float(value).hex() for name, value in self.losses.items()},
            "grad_norm": self.grad_norm.hex(),
        }


class Ledger:
    """Rank 0 writes; other ranks have one that does nothing. As for the run's log, a lost line is said by `sync`."""

    def __init__(self, run_dir: Path, *, is_main: bool) -> None:
        self.path = run_dir / LEDGER_FILE
        self.is_main = is_main
        self._file: TextIO | None = None
        self._chain = ""
        self._launch: Line | None = None
        self._taken: StepTaken | None = None
        self._failure: OSError | None = None

    def rewind(self, step: int) -> str | None:
        """Drops the lines of later steps and a torn last one, to go on from there. Returns what is wrong with the rest."""
        self._taken = None
        if not self.is_main:
            return None
        self._close_file()
        found = read_ledger(self.path, last_step=step)
        if self.path.exists():
            os.truncate(self.path, found.num_bytes)
        self._chain = found.lines[-1]["chain"] if found.lines else ""
        self._launch = next((line["launch"] for line in reversed(found.lines) if "launch" in line), None)
        self._file = self.path.open("a", encoding="utf-8")
        return found.complaint

    def launched(self, step: int, launch: Line) -> None:
        """Notes what computes the steps after `step`, if it is another than before."""
        if self._file is not None and launch != self._launch:
            self._launch = launch
            self._write({"step": step, "launch": launch})

    def took(self, taken: StepTaken) -> None:
        """Its line is written with the next step, so that nobody waits for the device because of it."""
        if self._file is not None:
            self._write_taken()
            self._taken = taken

    def sync(self) -> None:
        """Forces all lines to disk. Raises OSError if one was lost since the run started."""
        self._write_taken()
        if self._failure is not None:
            raise self._failure
        if self._file is not None:
            if not self.path.exists():  # removed under the run, which has said so of its other files
                self._close_file()
                self._file = self.path.open("a", encoding="utf-8")
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._write_taken()
        self._close_file()

    def _write_taken(self) -> None:
        if self._taken is not None:
            self._write(self._taken.line())
            self._taken = None

    def _write(self, line: Line) -> None:
        self._chain = _linked(self._chain, line)
        try:
            assert self._file is not None
            self._file.write(json.dumps({**line, "chain": self._chain}) + "\n")
            self._file.flush()
        except OSError as error:
            self._failure = self._failure or error

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written was said by `sync`
                self._file.close()
            self._file = None


@dataclass(slots=True)
class LedgerContent:
    lines: list[Line]
    num_bytes: int
    """Of these lines in the file."""
    complaint: str | None
    """Where the chain is broken for the first time."""

    def steps(self) -> dict[int, Line]:
        """The line of each step, by the number of steps taken then."""
        return {line["step"]: line for line in self.lines if "launch" not in line}

    def launch_of(self, step: int) -> Line | None:
        """What computed this step."""
        launches = [line for line in self.lines if "launch" in line and line["step"] < step]
        return launches[-1]["launch"] if launches else None


def read_ledger(path: Path, *, last_step: int | None = None) -> LedgerContent:
    """All lines but a torn last one, or up to the last one of that step or an earlier one. None where there is no file.

    Steps go up, except where the run went back to a checkpoint: then those after it come again.
    """
    if not path.exists():
        return LedgerContent([], 0, None)
    lines: list[Line] = []
    ends, first_wrong, complaint, chain = [0], math.inf, None, ""
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        line = _parsed(text)
        if line is None and not text.endswith(b"\n"):
            break
        if line is None or _linked(chain, line) != line["chain"]:
            first_wrong = min(first_wrong, number)
        ends.append(ends[-1] + len(text))
        lines.append(line or {"step": -1, "chain": chain, "launch": None})
        chain = lines[-1]["chain"]
    if last_step is not None:
        kept = max((number for number, line in enumerate(lines, 1) if 0 <= line["step"] <= last_step), default=0)
        lines = lines[:kept]
    if first_wrong <= len(lines):
        complaint = (
            f"{path}, line {first_wrong} does not continue the chain: it or a line before it was changed, added or taken "
            "out"
        )
    return LedgerContent([line for line in lines if line["step"] >= 0], ends[len(lines)], complaint)


def _parsed(text: bytes) -> Line | None:
    try:
        line = read_json(text)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("chain"), str)
    return line if whole and text.endswith(b"\n") else None


def _linked(chain: str, line: Line) -> str:
    content = {key: value for key, value in line.items() if key != "chain"}
    return hashlib.sha256((chain + json.dumps(content)).encode()).hexdigest()
