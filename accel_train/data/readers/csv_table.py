"""CSV and TSV tables with a header line; images as paths (from the table's folder) or base64."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accel_train.data.readers.records import BadRecord, Columns, Record, files_by_split
from accel_train.data.readers.rows import RowRecords, choose_columns
from accel_train.errors import UserError

MAX_FIELD = 2**31 - 1
"""Characters in one field: the csv module's own limit of 131,072 is too small for images in base64."""


def find_splits(source: Path) -> dict[str, list[Path]]:
    """`train.csv`, `valid.csv` and the like in a folder, or one file."""
    return files_by_split(source, (".csv", ".tsv"))


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """One record for each new image and each caption."""
    rows: RowRecords | None = None
    for path in files:
        with open_table(path) as table:
            chosen = choose_columns(str(path), table.fieldnames or [], columns)
            rows = rows or RowRecords(chosen, path.parent)
            for where, row in rows_of(table, path):
                if isinstance(row, BadRecord):
                    yield row
                else:
                    yield from rows.records(where, row)


@contextmanager
def open_table(path: Path) -> Iterator["csv.DictReader[str]"]:
    """A table whose header is read. Raises UserError where the file stops being CSV."""
    csv.field_size_limit(MAX_FIELD)
    # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them is named and not the whole file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            yield table
        except csv.Error as error:
            raise UserError(f"{path}:{table.reader.line_num}: not CSV from here on ({error}).") from error


def rows_of(table: "csv.DictReader[str]", path: Path) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
    """Every row with the place it stands at."""
    for row in table:
        where = f"{path}:{table.line_num}"
        if None in row or None in row.values():
            yield where, BadRecord(where, f"not as many fields as the {len(table.fieldnames or [])} of the header")
        else:
            yield where, row
