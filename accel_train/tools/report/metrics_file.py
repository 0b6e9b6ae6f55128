"""metrics.jsonl as columns: fast for millions of lines, and patient with damaged ones."""

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json

from accel_train.errors import UserError
from accel_train.json_text import read_json

BLOCK_BYTES = 8 * 2**20
LARGEST_WHOLE = 2**53
"""Beyond it a float can't hold every whole number."""
NAMED = 5
"""So many damaged lines are named."""


@dataclass(slots=True)
class Rows:
    """The lines of one split, in the order of their steps."""

    steps: np.ndarray
    """(n,) int64"""
    columns: dict[str, np.ndarray]
    """Each (n,) float64; NaN where a line lacks the value."""

    def given(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the lines that hold this value."""
        values = self.columns.get(name, np.full(len(self.steps), np.nan))
        there = ~np.isnan(values)
        return self.steps[there], values[there]


@dataclass(slots=True)
class Metrics:
    splits: dict[str, Rows]
    num_lines: int
    damaged: list[int] = field(default_factory=list)
    """Numbers of lines that are no line of metrics, from 1."""
    is_unfinished: bool = False
    """The last line has only been written in part."""

    def split(self, name: str) -> Rows:
        return self.splits.get(name, Rows(np.zeros(0, np.int64), {}))

    def complaint(self, path: Path) -> str:
        """What is wrong with the file, or nothing."""
        if not self.damaged:
            return ""
        numbers = ", ".join(map(str, self.damaged[:NAMED])) + (" ..." if len(self.damaged) > NAMED else "")
        lines = "line" if len(self.damaged) == 1 else "lines"
        return (
            f"{path}: {lines} {numbers} of {self.num_lines:,} can't be read and "
            f"{'is' if len(self.damaged) == 1 else 'are'} left out; each line must be a JSON object with step and split."
        )


def read_metrics(path: Path) -> Metrics:
    """Raises UserError for a file that can't be read or holds no line of metrics."""
    parts: dict[str, list[Rows]] = defaultdict(list)
    metrics = Metrics({}, 0)
    try:
        with path.open("rb") as file:
            for block in _blocks(file):
                table = _table(block)
                if table is None:
                    table = _without_damage(block, metrics)
                metrics.num_lines += block.count(b"\n") + (not block.endswith(b"\n"))
                for split, rows in _by_split(table):
                    parts[split].append(rows)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}. Is this the folder of a run?") from error
    if not parts:
        wrong = metrics.complaint(path)
        raise UserError(
            wrong
            or f"{path} holds no metrics yet. A run writes its first line at the first evaluation or after log.log_every."
        )
    metrics.splits = {split: _joined(rows) for split, rows in parts.items()}
    return metrics


def _blocks(file: io.BufferedReader) -> Iterator[bytes]:
    """Whole lines, some megabytes of them at a time."""
    while block := file.read(BLOCK_BYTES):
        yield block + file.readline()


def _table(block: bytes) -> pa.Table | None:
    """The lines as a table, or None unless all of them are as they should be."""
    try:
        table = pyarrow.json.read_json(io.BytesIO(block))
    except pa.ArrowInvalid:
        return None
    num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    names = table.column_names
    if table.num_rows != num_lines or "step" not in names or "split" not in names:
        return None
    if not pa.types.is_int64(table["step"].type) or not pa.types.is_string(table["split"].type):
        return None
    others = [column.type for name, column in zip(names, table.columns, strict=True) if name not in ("step", "split")]
    whole = all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in others)
    if not whole or table["step"].null_count or table["split"].null_count:
        return None
    return table if table["step"].to_numpy().min() >= 0 else None


def _without_damage(block: bytes, metrics: Metrics) -> pa.Table:
    """The lines that are as they should be; the numbers of the others are noted."""
    sound = []
    for number, line in enumerate(block.splitlines(keepends=True), metrics.num_lines + 1):
        values = _values(line)
        if values is not None:
            sound.append(json.dumps(values))
        elif line.endswith(b"\n"):
            metrics.damaged.append(number)
        else:
            metrics.is_unfinished = True
    return pyarrow.json.read_json(io.BytesIO("\n".join(sound).encode())) if sound else pa.table({})


def _values(line: bytes) -> dict[str, object] | None:
    """What a sound line holds, without values that are no numbers."""
    try:
        found = read_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not isinstance(found.get("split"), str):
        return None
    if not 0 <= found["step"] <= LARGEST_WHOLE:
        return None
    numbers = {name: float(value) for name, value in found.items() if name != "step" and _is_number(value)}
    return {"step": found["step"], "split": found["split"], **numbers}


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST_WHOLE)


def _by_split(table: pa.Table) -> Iterator[tuple[str, Rows]]:
    if not table.num_rows:
        return
    splits = table["split"].to_numpy()
    steps = table["step"].to_numpy()
    names = [name for name in table.column_names if name not in ("step", "split")]
    columns = {name: table[name].to_numpy().astype(float) for name in names}
    for split in dict.fromkeys(splits.tolist()):
        mine = splits == split
        own = {name: values[mine] for name, values in columns.items()}
        yield split, Rows(steps[mine], {name: values for name, values in own.items() if not np.isnan(values).all()})


def _joined(parts: list[Rows]) -> Rows:
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    steps = np.concatenate([part.steps for part in parts])
    order = np.argsort(steps, kind="stable")
    columns = {}
    for name in names:
        pieces = [part.columns.get(name, np.full(len(part.steps), np.nan)) for part in parts]
        columns[name] = np.concatenate(pieces)[order]
    return Rows(steps[order], columns)
