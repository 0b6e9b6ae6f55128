"""Parquet files and Arrow files (both kinds, file and stream) with an image and a caption in each row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from accel_train.data.readers.records import Columns, Record, files_by_split
from accel_train.data.readers.rows import RowRecords, choose_columns
from accel_train.errors import UserError

BATCH_ROWS = 64
"""Rows in memory at once; images can be large."""


def find_splits(source: Path) -> dict[str, list[Path]]:
    """`train.parquet`, `train-00000-of-00004.parquet` and the like in a folder, or one file."""
    return files_by_split(source, (".parquet", ".arrow"))


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """One record for each new image and each caption."""
    rows: RowRecords | None = None
    for path in files:
        chosen: Columns | None = None
        for where, row in rows_of(path):
            chosen = chosen or choose_columns(str(path), row, columns)
            rows = rows or RowRecords(chosen, path.parent)
            yield from rows.records(where, row)


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with the place it stands at. Raises UserError where the file can't be read any further."""
    row_number = 0
    try:
        for batch in _batches(path):
            batch.validate(full=True)  # else a damaged file can have memory read that is not the file's
            for row in batch.to_pylist():
                yield f"{path}: row {row_number}", row
                row_number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: dates that are none
        raise UserError(f"{path}: can't be read after row {row_number} ({error}).") from error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)
        return
    with pa.memory_map(str(path)) as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file_format:
            reader = pa.ipc.open_file(file)
            batches: Iterator[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)
