"""`ledger.jsonl`: what each step of a run was, to the last bit, so that a replay can be compared with it.

One JSON object a line. A step has the hash of its samples in their order, its losses and the gradient norm as exact
hexadecimal floats. A line with `launch` says what computed the steps after it. `chain` is the SHA-256 of the chain before
and the line without it, so a line that was changed, added or taken out breaks the chain from there on.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor

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
    """The lines up to that step, or all; a torn last line is left out. There are none where there is no file."""
    lines: list[Line] = []
    num_bytes, complaint, chain = 0, None, ""
    if not path.exists():
        return LedgerContent(lines, num_bytes, complaint)
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            line = _parsed(text)
            if line is None:
                rest = file.read(1)
                if rest or text.endswith(b"\n"):
                    complaint = complaint or f"{path}, line {number} is not a line of a ledger"
                break
            if last_step is not None and line["step"] > last_step:
                break
            if complaint is None and _linked(chain, line) != line["chain"]:
                complaint = (
                    f"{path}, line {number} (step {line['step']}) does not continue the chain: it or a line before it was "
                    "changed, added or taken out"
                )
            chain = line["chain"]
            lines.append(line)
            num_bytes += len(text)
    return LedgerContent(lines, num_bytes, complaint)


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("chain"), str)
    return line if whole and text.endswith(b"\n") else None


def _linked(chain: str, line: Line) -> str:
    content = {key: value for key, value in line.items() if key != "chain"}
    return hashlib.sha256((chain + json.dumps(content)).encode()).hexdigest()
