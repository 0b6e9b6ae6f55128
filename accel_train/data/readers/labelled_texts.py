"""Texts with a label each: lines of `label ||| text`, CSV, TSV, JSONL, Parquet and folders of `datasets`.

`label-mapping.json` beside the files says what numbers mean, {"0": "games", ...} or {"games": 0, ...}; `datasets` keeps the
names itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.data.readers import csv_table, hf_datasets, jsonl, parquet
from accel_train.data.readers.records import BadRecord, BadValue, as_caption, as_id, files_by_split, text_lines
from accel_train.data.readers.rows import TEXT_NAMES
from accel_train.errors import UserError
from accel_train.json_text import read_json

SEPARATOR = "|||"
FIRST_LINES = 10
MAPPING = "label-mapping.json"
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target")
MORE_TEXT_NAMES = (*TEXT_NAMES, "content", "review", "description")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text. `label` is as the source has it; `text_id` is None where the source names none."""

    where: str
    text_id: str | None
    text: str
    label: str


@dataclass(frozen=True)
class TextColumns:
    """Names of columns in tables. None: the first known name that the table has."""

    text: str | None = None
    label: str | None = None
    text_id: str | None = None


LabelledRecord = LabelledText | BadRecord
Rows = Iterator[tuple[str, dict[str, Any] | BadRecord]]


def find_lines(source: Path) -> dict[str, list[Path]]:
    """`train.txt`, `dev.txt` and the like whose first line has the separator, in a folder, or one file."""
    splits = files_by_split(source, (".txt",))
    return {split: paths for split, paths in splits.items() if all(_has_separator(path) for path in paths)}


def read_lines(paths: list[Path], columns: TextColumns) -> Iterator[LabelledRecord]:
    """One record for each line that is not blank."""
    for path in paths:
        for where, line in text_lines(path):
            if line is None:
                yield BadRecord(where, "not UTF-8")
            elif line.strip():
                label, found, text = line.partition(SEPARATOR)
                yield (
                    _record(where, None, text.strip(), label.strip())
                    if found
                    else BadRecord(where, f"no {SEPARATOR} in it; a line is label {SEPARATOR} text")
                )


def read_rows(paths: list[Path], columns: TextColumns) -> Iterator[LabelledRecord]:
    """One record for each row of a table."""
    for path in paths:
        chosen: TextColumns | None = None
        for where, row in _rows_of(path):
            if isinstance(row, BadRecord):
                yield row
                continue
            chosen = chosen or choose_text_columns(str(path), row, columns)
            text_id = None if chosen.text_id is None else row.get(chosen.text_id)
            yield _record(where, text_id, row.get(str(chosen.text)), row.get(str(chosen.label)), has_id=chosen.text_id)


FORMATS: dict[str, tuple[Callable[[Path], dict[str, list[Path]]], Callable[..., Iterator[LabelledRecord]]]] = {
    "hf_datasets": (hf_datasets.find_splits, read_rows),
    "parquet": (parquet.find_splits, read_rows),
    "jsonl": (jsonl.find_splits, read_rows),
    "csv": (csv_table.find_splits, read_rows),
    "label_lines": (find_lines, read_lines),
}
"""How the splits of each kind of source are found, and read; in the order in which kinds are tried."""


def choose_text_columns(where: str, names: Iterable[str], columns: TextColumns) -> TextColumns:
    """The columns to read: those asked for, else the first known names. Raises UserError where text or label lacks."""
    found = list(names)

    def choose(part: str, asked: str | None, known: tuple[str, ...]) -> str | None:
        if asked is not None and asked not in found:
            raise UserError(f"{where}: no column {asked!r} for the {part}; it has {', '.join(found)}.")
        chosen = asked or next((name for name in known if name in found), None)
        if chosen is None and part != "text id":
            raise UserError(
                f"{where}: no column known to hold the {part}; it has {', '.join(found)}. Name it with --{part}-column."
            )
        return chosen

    return TextColumns(
        text=choose("text", columns.text, MORE_TEXT_NAMES),
        label=choose("label", columns.label, LABEL_NAMES),
        text_id=choose("text id", columns.text_id, ("text_id",)),
    )


def read_mapping(source: Path, paths: list[Path]) -> dict[str, str] | None:
    """Names of the classes by the labels of the source, in the order of their numbers. None: the source has no such list."""
    folder = source if source.is_dir() else source.parent
    if (folder / MAPPING).is_file():
        return _mapping(folder / MAPPING, _read_json(folder / MAPPING))
    info = paths[0].parent / "dataset_info.json"
    if info.is_file():
        features = _read_json(info).get("features")
        for name in LABEL_NAMES if isinstance(features, dict) else ():
            column = (features or {}).get(name)
            names = column.get("names") if isinstance(column, dict) else None
            if isinstance(names, list):
                return {str(number): str(label) for number, label in enumerate(names)}
    return None


def _mapping(path: Path, content: Mapping[str, Any]) -> dict[str, str]:
    by_number = {key: value for key, value in content.items() if key.isdecimal() and isinstance(value, str)}
    if len(by_number) < len(content):
        by_number = {str(value): key for key, value in content.items() if isinstance(value, int)}
    names = list(by_number.values())
    if len(by_number) < len(content) or len(set(names)) < len(names) or len(names) < 2:
        raise UserError(f'{path}: it must give each of two labels or more a name of its own, as {{"0": "games", ...}}.')
    return {key: by_number[key] for key in sorted(by_number, key=int)}


def _record(where: str, text_id: Any, text: Any, label: Any, *, has_id: str | None = None) -> LabelledRecord:
    try:
        known_as = None if has_id is None else as_id(has_id, text_id)
        return LabelledText(where, known_as, as_caption("the text", text), as_id("the label", label))
    except BadValue as error:
        return BadRecord(where, str(error))


def _rows_of(path: Path) -> Rows:
    if path.suffix in (".csv", ".tsv"):
        with csv_table.open_table(path) as table:
            yield from csv_table.rows_of(table, path)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from jsonl.objects_of(path)
    else:
        yield from parquet.rows_of(path)


def _has_separator(path: Path) -> bool:
    """Whether any of the first lines has it: one bad line must not hide a whole file."""
    return any(SEPARATOR in (line or "") for _, (_, line) in zip(range(FIRST_LINES), text_lines(path), strict=False))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where names belong.")
    return content
