"""`ledger.jsonl`: what each step of a run was, to the last bit, so that a replay can be compared with it.

One JSON object a line. A step has the hash of its samples in their order, its losses and the gradient norm as exact
hexadecimal floats. A line with `launch` says what computed the steps after it. `chain` is the SHA-256 of the chain before
and the line without it, so a line that was changed, added or taken out breaks the chain from there on.
"""

import hashlib
import json
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from accel_train.json_text import lines_from_end, read_json

LEDGER_FILE = "ledger.jsonl"
CHECKED_LINES = 10_000
"""The last lines, whose chain is checked at a resume."""
CHAIN_KEY = b', "chain": "'
LINE_END = b'"}\n'
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
        """Drops the lines of later steps and a torn last one, to go on from there.

        Returns what is wrong with the last of the others. All of a million lines would take longer than the first step.
        """
        self._taken = None
        if not self.is_main:
            return None
        self._close_file()
        complaint, self._chain, self._launch = None, "", None
        if self.path.exists():
            end = _end_of_step(self.path, step)
            os.truncate(self.path, end)
            self._chain, complaint = _check_end(self.path)
            self._launch = _last_launch(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        return complaint

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
    complaint: str | None
    """Where the chain is broken for the first time."""

    def steps(self) -> dict[int, Line]:
        """The line of each step, by the number of steps taken then."""
        return {line["step"]: line for line in self.lines if "launch" not in line}

    def launch_of(self, step: int) -> Line | None:
        """What computed this step."""
        launches = [line for line in self.lines if "launch" in line and line["step"] < step]
        return launches[-1]["launch"] if launches else None


def read_ledger(path: Path) -> LedgerContent:
    """All lines but a torn last one, with the whole chain checked. None where there is no file.

    Steps go up, except where the run went back to a checkpoint: then those after it come again.
    """
    if not path.exists():
        return LedgerContent([], None)
    lines: list[Line] = []
    complaint, chain = None, ""
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        line = _parsed(text)
        if line is None and not text.endswith(b"\n"):
            break
        if complaint is None and (line is None or _linked(chain, line) != line["chain"]):
            complaint = _broken(path, number)
        if line is not None and line["step"] >= 0:
            lines.append(line)
        chain = chain if line is None else line["chain"]
    return LedgerContent(lines, complaint)


def _end_of_step(path: Path, step: int) -> int:
    """Where the last line of that step or an earlier one ends."""
    if step >= 0:
        for start, text in lines_from_end(path):
            line = _parsed(text)
            if line is not None and 0 <= line["step"] <= step:
                return start + len(text)
    return 0


def _check_end(path: Path) -> tuple[str, str | None]:
    """The chain after the last line, and where it is broken for the first time in the last CHECKED_LINES lines."""
    texts = list(islice(lines_from_end(path), CHECKED_LINES + 1))
    chain, complaint = None if len(texts) > CHECKED_LINES else "", None
    for start, text in reversed(texts):
        if chain is not None and (link := _link(chain, text)) is not None:
            chain = link
            continue
        if complaint is None and chain is not None:
            complaint = _broken(path, path.read_bytes()[:start].count(b"\n") + 1)
        line = _parsed(text)
        chain = (chain or "") if line is None else line["chain"]
    return chain or "", complaint


def _last_launch(path: Path) -> Line | None:
    """What the last line about a launch says. Found by its bytes: it may stand a million lines before the end."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = len(content)
        while (place := content.rfind(b'"launch"', 0, place)) >= 0:
            start = content.rfind(b"\n", 0, place) + 1
            line = _parsed(content[start : content.find(b"\n", place) + 1])
            if line is not None and "launch" in line:
                launch: Line = line["launch"]
                return launch
    return None


def _broken(path: Path, number: int) -> str:
    return f"{path}, line {number} does not continue the chain: it or a line before it was changed, added or taken out"


def _parsed(text: bytes) -> Line | None:
    try:
        line = read_json(text)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("chain"), str)
    return line if whole and text.endswith(b"\n") else None


def _link(chain: str, text: bytes) -> str | None:
    """The chain after a line, if that is what the line says. As `_linked`, on bytes: at a resume to parse ten thousand lines
    would take longer than the first step."""
    content, _, rest = text.rpartition(CHAIN_KEY)
    link = hashlib.sha256(chain.encode() + content + b"}").hexdigest()
    return link if rest == link.encode() + LINE_END else None


def _linked(chain: str, line: Line) -> str:
    content = {key: value for key, value in line.items() if key != "chain"}
    return hashlib.sha256((chain + json.dumps(content)).encode()).hexdigest()
