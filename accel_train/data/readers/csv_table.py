"""CSV and TSV tables with a header line; images as paths (from the table's folder) or base64."""

import csv
from collections.abc import Iterator
from pathlib import Path

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
    csv.field_size_limit(MAX_FIELD)
    for path in files:
        # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them is named and not the whole file.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            try:
                chosen = choose_columns(str(path), reader.fieldnames or [], columns)
                rows = rows or RowRecords(chosen, path.parent)
                for row in reader:
                    where = f"{path}:{reader.line_num}"
                    if None in row or None in row.values():
                        yield BadRecord(
                            where, f"not as many fields as the {len(reader.fieldnames or [])} of the header"
                        )
                    else:
                        yield from rows.records(where, row)
            except csv.Error as error:
                raise UserError(f"{path}:{reader.reader.line_num}: not CSV from here on ({error}).") from error
