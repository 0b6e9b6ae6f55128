"""JSON lines with an image and a caption, or a list of captions, in each; images as paths or base64."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accel_train.data.readers.records import BadRecord, Columns, Record, files_by_split, text_lines
from accel_train.data.readers.rows import RowRecords, choose_columns
from accel_train.json_text import read_json


def find_splits(source: Path) -> dict[str, list[Path]]:
    """`train.jsonl`, `valid.jsonl` and the like in a folder, or one file."""
    return files_by_split(source, (".jsonl", ".ndjson"))


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """One record for each new image and each caption. The first object says which columns there are."""
    rows: RowRecords | None = None
    for path in files:
        for where, value in objects_of(path):
            if isinstance(value, BadRecord):
                yield value
                continue
            rows = rows or RowRecords(choose_columns(where, value, columns), path.parent)
            yield from rows.records(where, value)


def objects_of(path: Path) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
    """The object of every line with the place it stands at."""
    for where, line in text_lines(path):
        if line is None:
            yield where, BadRecord(where, "not UTF-8")
            continue
        try:
            value = read_json(line)
        except ValueError as error:
            yield where, BadRecord(where, f"not JSON ({error})")
            continue
        if isinstance(value, dict):
            yield where, value
        else:
            yield where, BadRecord(where, f"a {type(value).__name__} where an object belongs")
