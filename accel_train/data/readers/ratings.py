"""Tables with an image, a prompt and ratings in each row: CSV, TSV and JSON lines."""

import math
import os.path
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accel_train.data.arrow_writer import content_key
from accel_train.data.readers import csv_table, jsonl
from accel_train.data.readers.records import BadRecord, BadValue, as_caption, as_id, files_by_split
from accel_train.data.readers.rows import IMAGE_ENDINGS, IMAGE_NAMES, MAX_SHOWN, image_bytes
from accel_train.errors import UserError

IMAGE_FOLDER = "images"
TABLES = {"csv": (".csv", ".tsv"), "jsonl": (".jsonl", ".ndjson")}
KNOWN_NAMES = {
    "image": IMAGE_NAMES,
    "prompt": ("prompt", "text", "caption"),
    "quality": ("quality", "mos_quality"),
    "consistency": ("consistency", "mos_consistency", "alignment", "mos_align"),
    "explanation": ("explanation",),
    "group": (),
}


@dataclass(frozen=True)
class RatingColumns:
    """Names of columns. None: the first known name that the table has; there need be no explanation and no group."""

    image: str | None = None
    prompt: str | None = None
    quality: str | None = None
    consistency: str | None = None
    explanation: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RatedRecord:
    """One row. Ratings are on the scale of the source."""

    where: str
    image_id: str
    """The image's path, or a hash where the table holds the image itself."""
    image: bytes
    prompt: str
    ratings: dict[str, float]
    explanation: str | None
    group: str | None


def find_tables(source: Path, format: str | None) -> dict[str, list[Path]]:
    """The tables of each split; a single one of any name is the split `train`."""
    if format is not None and format not in TABLES:
        raise UserError(f"--format is {format!r}; ratings are read from {' and '.join(TABLES)}.")
    endings = tuple(ending for name in TABLES if format in (None, name) for ending in TABLES[name])
    found = files_by_split(source, endings)
    files = [path for paths in found.values() for path in paths]
    if not files:
        raise UserError(f"{source} holds no table of ratings ({', '.join(endings)}).")
    return files_by_split(files[0], endings) if len(files) == 1 else found


def read(files: list[Path], columns: RatingColumns) -> Iterator[RatedRecord | BadRecord]:
    """Every row of some tables, in order. Raises UserError for a table that lacks a column."""
    for path in files:
        if path.name.endswith(TABLES["csv"]):
            with csv_table.open_table(path) as table:
                chosen = choose_columns(str(path), table.fieldnames or [], columns)
                for where, row in csv_table.rows_of(table, path):
                    yield row if isinstance(row, BadRecord) else _record(where, row, chosen, path.parent)
        else:
            yield from _json_lines(path, columns)


def _json_lines(path: Path, columns: RatingColumns) -> Iterator[RatedRecord | BadRecord]:
    chosen: RatingColumns | None = None
    for where, row in jsonl.objects_of(path):
        if isinstance(row, BadRecord):
            yield row
            continue
        # Optional columns may lack in the first object, so the names of all of them are looked for.
        optional = {"explanation": columns.explanation or KNOWN_NAMES["explanation"][0], "group": columns.group}
        named = [*row, *(name for name in optional.values() if name and name not in row)]
        chosen = chosen or choose_columns(where, named, columns)
        yield _record(where, row, chosen, path.parent)


def choose_columns(where: str, names: Iterable[str], columns: RatingColumns) -> RatingColumns:
    """The columns to read. Raises UserError for one that is asked for or needed and not there."""
    found = list(names)
    shown = [name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..." for name in found]
    has = f"it has {', '.join(shown)}" if found else "it has no columns"
    chosen: dict[str, str | None] = {}
    for part in (field.name for field in fields(RatingColumns)):
        asked = vars(columns)[part]
        if asked is not None and asked not in found:
            raise UserError(f"{where}: no column {asked!r} for {part}; {has}.")
        chosen[part] = asked or next((name for name in KNOWN_NAMES[part] if name in found), None)
        if chosen[part] is None and part not in ("explanation", "group"):
            raise UserError(f"{where}: no column known to hold the {part}; {has}. Name it with --{part}-column.")
    return RatingColumns(**chosen)


def _record(where: str, row: Mapping[str, Any], columns: RatingColumns, root: Path) -> RatedRecord | BadRecord:
    assert columns.image and columns.prompt and columns.quality and columns.consistency
    try:
        value = row.get(columns.image)
        image, name = image_bytes(columns.image, value, _folder_of(value, root))
        explanation = row.get(columns.explanation) if columns.explanation else None
        has_explanation = explanation is not None and explanation != ""
        return RatedRecord(
            where=where,
            image_id=f"{content_key(image):016x}" if name is None else as_id(columns.image, name),
            image=image,
            prompt=as_caption(columns.prompt, row.get(columns.prompt)),
            ratings={
                "quality": as_rating(columns.quality, row.get(columns.quality)),
                "consistency": as_rating(columns.consistency, row.get(columns.consistency)),
            },
            explanation=as_caption(columns.explanation or "", explanation) if has_explanation else None,
            group=as_id(columns.group, row.get(columns.group)) if columns.group else None,
        )
    except BadValue as error:
        return BadRecord(where, str(error))


def _folder_of(value: Any, root: Path) -> Path:
    """Where an image's path begins: the table's folder, or `images` in it if the file is there and not in the former."""
    if isinstance(value, str) and value.lower().endswith(IMAGE_ENDINGS):
        name = value.replace("\0", "")
        if not os.path.isfile(root / name) and os.path.isfile(root / IMAGE_FOLDER / name):
            return root / IMAGE_FOLDER
    return root


def as_rating(name: str, value: Any) -> float:
    """A finite number, or text that is one."""
    try:
        rating = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        shown = repr(value)
        raise BadValue(
            f"{name} is {shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + '...'}; a rating is a number"
        )
    return rating
