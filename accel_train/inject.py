"""Faults on demand: `train --inject` brings them about at the steps and moments that it names, and says so loudly.

The loop and the checkpoints call `at` where something may go wrong. Without faults that is one look at an empty tuple.
"""

import errno
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from accel_train.config.faults import Fault, Moment
from accel_train.data.dataset import Dataset, UnreadableSample
from accel_train.data.padding import padding_of
from accel_train.errors import UserError
from accel_train.run_log import RunLog

INJECTED_FILE = "injected.jsonl"


class Faults:
    """The faults of a run on one rank. What ends a process fires once in a run directory, and is remembered there first."""

    def __init__(
        self, faults: tuple[Fault, ...], *, rank: int, log: RunLog, fired: frozenset[str] = frozenset()
    ) -> None:
        """`fired` holds the texts of faults that fired in earlier processes, the same on every rank."""
        self.rank = rank
        self.log = log
        self._poison: RemovableHandle | None = None
        self._poisoned: set[Fault] = set()
        self.waiting = tuple(fault for fault in faults if fault.text not in fired)
        if faults:
            over = sorted(fired & {fault.text for fault in faults})
            self._warn(
                "--inject: this run is made to fail; faults to come: "
                f"{', '.join(fault.text for fault in self.waiting) or 'none'}; fired already: {', '.join(over) or 'none'}"
            )

    def at(self, moment: Moment, step: int, path: Path | None = None) -> None:
        """Fires what is meant for this rank, moment and step. `path` is the file or folder that the moment is about.

        Raises OSError for a full disk.
        """
        for fault in self.waiting:
            if fault.once and (fault.moment, fault.step) == (moment, step) and fault.rank in (None, self.rank):
                self.waiting = tuple(other for other in self.waiting if other is not fault)
                self._remember(fault)
                self._say(fault)
                _fire(fault, path)

    def before_step(self, step: int, model: nn.Module) -> None:
        """The moment `step`, at which this rank may be slow, or what its model gives in this step becomes NaN."""
        if self._poison is not None:
            self._poison.remove()
            self._poison = None
        self.at("step", step)
        for fault in self.waiting:
            if fault.rank not in (None, self.rank):
                continue
            if fault.kind == "slow":
                time.sleep(fault.seconds)
            elif fault.kind == "nan" and fault.step == step and fault not in self._poisoned:
                self._say(fault)
                self._poisoned.add(fault)
                self._poison = model.register_forward_hook(_become_nan)

    def on_rows_of(self, dataset: Dataset) -> Dataset:
        """The training data, without the rows that can't be read."""
        rows = frozenset(fault.row for fault in self.waiting if fault.kind == "unreadable-sample")
        return DatasetWithHoles(dataset, rows) if rows else dataset

    def say_what_is_left(self) -> None:
        """At the end of a run: a fault that never fired has tested nothing."""
        left = [fault.text for fault in self.waiting if fault.once and fault.rank in (None, self.rank)]
        if left:
            self._warn(f"--inject: never fired, since the run never came there: {', '.join(left)}")

    def _remember(self, fault: Fault) -> None:
        line = {"fault": fault.text, "rank": self.rank, "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        descriptor = os.open(self.log.run_dir / INJECTED_FILE, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _say(self, fault: Fault) -> None:
        self._warn(f"--inject: {fault.text} fires on rank {self.rank}")

    def _warn(self, message: str) -> None:
        self.log.note(f"warning: {message}")
        print(f"warning: {message}", file=sys.stderr, flush=True)


class DatasetWithHoles:
    """A dataset some of whose rows can't be read, in loader processes too."""

    def __init__(self, dataset: Dataset, rows: frozenset[int]) -> None:
        self.fingerprint = dataset.fingerprint
        self.padding = padding_of(dataset)
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        if row in self._rows:
            raise UnreadableSample(f"row {row}: --inject unreadable-sample:{row}")
        return self._dataset.read(row, epoch)


def fired_faults(run_dir: Path) -> frozenset[str]:
    """Texts of the faults that have fired in this run directory. A torn last line is of a fault that has not."""
    path = run_dir / INJECTED_FILE
    if not path.exists():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(text for line in lines if (text := _text_of(line)) is not None)


def _text_of(line: str) -> str | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        return str(entry["fault"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _fire(fault: Fault, path: Path | None) -> None:
    match fault.kind:
        case "hang":
            while True:
                time.sleep(3600)
        case "signal":
            assert fault.to_send is not None
            os.kill(os.getpid(), fault.to_send)
        case "kill-worker":
            _kill_a_worker(fault)
        case "disk-full":
            _tear(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        case "torn-checkpoint":
            _tear(path)
            _kill()
        case "corrupt-checkpoint":
            _change_a_byte(path)
            _kill()
        case "kill":
            _kill()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _become_nan(model: nn.Module, _inputs: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A forward hook: gradients become NaN too. An evaluation is spared."""
    if not model.training:
        return None
    return {name: value * math.nan if value.is_floating_point() else value for name, value in outputs.items()}


def _kill_a_worker(fault: Fault) -> None:
    workers = multiprocessing.active_children()
    if not workers:
        raise UserError(f"--inject {fault.text!r}: no loader process is left that could be killed.")
    workers[0].kill()


def _tear(path: Path | None) -> None:
    assert path is not None
    os.truncate(path, path.stat().st_size // 2)


def _change_a_byte(folder: Path | None) -> None:
    """Flips the last byte of the first rank's file: a value, not the header."""
    assert folder is not None
    path = min(folder.glob("rank_*.safetensors"))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 0xFF]))
        file.flush()
        os.fsync(file.fileno())
