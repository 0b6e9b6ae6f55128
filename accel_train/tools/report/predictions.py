"""What a run's model predicts, from the table that its best evaluation left. The columns say what kind of table it is."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from accel_train.tools.page.page import table
from accel_train.tools.report import captions, labels, ratings, retrieval
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row, numbered

MOST_ROWS = 1_000_000
FIRST_ROWS = 20
"""Shown of a table of another kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    columns: frozenset[str]
    """That tell it."""
    numbers: tuple[str, ...]
    draw: Callable[[Record, str, list[Row]], Markup]


KINDS = (
    Kind(frozenset(retrieval.COLUMNS), ("rank", "similarity_1"), retrieval.draw),
    Kind(frozenset(ratings.COLUMNS), tuple(ratings.COLUMNS[2:]), ratings.draw),
    Kind(frozenset(labels.COLUMNS), ("probability",), labels.draw),
    Kind(frozenset(captions.COLUMNS), ("loss",), captions.draw),
)


def predictions(record: Record) -> Markup:
    """One part for each split that has a table; nothing where there is none."""
    parts = Markup("")
    for path in tables(record):
        step = f" at step {record.best[0]:,}" if record.best and path.stem == record.valid_split else ""
        parts += Markup('<p class="note">Of the best evaluation{}, split {}.</p>').format(step, path.stem)
        parts += _drawn(record, path)
    return parts


def tables(record: Record) -> list[Path]:
    """A file for each split, named after it."""
    return sorted((record.folder / "predictions").glob("*.csv"))


def _drawn(record: Record, path: Path) -> Markup:
    rows, columns = read_table(path)
    for kind in KINDS:
        if kind.columns <= set(columns):
            sound = numbered(rows, kind.numbers)
            parts = kind.draw(record, path.stem, sound) if sound else Markup("")
            lost = len(rows) - len(sound)
            note = f"{lost} of {len(rows)} rows of {path} can't be read and are left out." if lost else ""
            return parts + (Markup('<p class="note wrong">{}</p>').format(note) if note else "")
    shown = [[row.get(name) or "" for name in columns] for row in rows[:FIRST_ROWS]]
    caption = f"The first {len(shown)} of {len(rows):,} rows of {path.name}"
    return table(columns, shown, caption=caption, numbers=False) if columns else Markup("")


def read_table(path: Path) -> tuple[list[Row], list[str]]:
    """Rows and the names of the columns; nothing of a file that is no table."""
    csv.field_size_limit(2**27)
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.DictReader(line.replace("\0", "") for line in stream)
        try:
            columns = list(reader.fieldnames or ())
            rows = [row for row, _ in zip(reader, range(MOST_ROWS), strict=False)]
        except csv.Error:
            return [], []
    return rows, columns
