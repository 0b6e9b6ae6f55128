"""Tables with an image and a caption in each row: what CSV, JSONL, Parquet and `datasets` have in common."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accel_train.data.arrow_writer import content_key
from accel_train.data.readers.records import (
    BadRecord,
    BadValue,
    Columns,
    ImageRecord,
    Record,
    TextRecord,
    as_base64,
    as_caption,
    as_id,
    read_inside,
)
from accel_train.errors import UserError

IMAGE_NAMES = ("image", "image_path", "image_file", "file_name", "filepath", "path", "image_base64", "jpg", "png")
TEXT_NAMES = ("text", "caption", "captions", "title", "sentence", "prompt", "txt")
MAX_SHOWN = 40
"""Characters of a column's name in a message."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def choose_columns(where: str, names: Iterable[str], columns: Columns) -> Columns:
    """The columns to read: those asked for, else the first known names. Image and text there must be, ids may be."""
    found = list(names)
    # A table without a header line shows its first row here, maybe an image in base64.
    shown = [name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..." for name in found]
    has = f"it has {', '.join(shown)}" if found else "it has no columns"

    def choose(part: str, asked: str | None, known: tuple[str, ...]) -> str | None:
        if asked is not None and asked not in found:
            raise UserError(f"{where}: no column {asked!r} for {part}; {has}.")
        return asked or next((name for name in known if name in found), None)

    chosen = Columns(
        image=choose("image", columns.image, IMAGE_NAMES),
        text=choose("text", columns.text, TEXT_NAMES),
        image_id=choose("image_id", columns.image_id, ("image_id",)),
        text_id=choose("text_id", columns.text_id, ("text_id",)),
    )
    for part, column in (("image", chosen.image), ("text", chosen.text)):
        if column is None:
            raise UserError(f"{where}: no column known to hold the {part}; {has}. Name it with --{part}-column.")
    return chosen


class RowRecords:
    """Turns rows into records: an image when its id comes for the first time, and the captions of each row.

    Without an id column an image given by its path is known by the path, any other by a hash of its bytes; captions are
    numbered.
    """

    def __init__(self, columns: Columns, root: Path) -> None:
        self._columns = columns
        self._root = root
        self._image_keys: dict[str, int] = {}
        self._num_texts = 0

    def records(self, where: str, row: Mapping[str, Any]) -> Iterator[Record]:
        """Records of one row, by column name."""
        assert self._columns.image is not None and self._columns.text is not None
        image_id = None
        try:
            if self._columns.image_id is not None:
                image_id = as_id(self._columns.image_id, row.get(self._columns.image_id))
            image, name = image_bytes(self._columns.image, row.get(self._columns.image), self._root)
            key = content_key(image)
            image_id = image_id or (f"{key:016x}" if name is None else as_id(self._columns.image, name))
            if self._image_keys.get(image_id, key) != key:
                raise BadValue(f"image id {image_id!r} came before with another image")
        except BadValue as error:
            yield BadRecord(where, str(error), image_id)
            return
        if image_id not in self._image_keys:
            self._image_keys[image_id] = key
            yield ImageRecord(where, image_id, image)
        captions = row.get(self._columns.text)
        for caption in captions if isinstance(captions, list) else [captions]:
            yield self._text(where, image_id, caption, row)

    def _text(self, where: str, image_id: str, caption: Any, row: Mapping[str, Any]) -> Record:
        assert self._columns.text is not None
        number = self._num_texts
        self._num_texts += 1
        column = self._columns.text_id
        try:
            text_id = str(number) if column is None else as_id(column, row.get(column))
            text = as_caption(self._columns.text, caption)
            return TextRecord(where, text_id, text, (image_id,), is_pair=column is not None)
        except BadValue as error:
            return BadRecord(where, str(error))


def image_bytes(column: str, value: Any, root: Path) -> tuple[bytes, str | None]:
    """An image cell as bytes, with the path that names it if it has one.

    The cell is bytes, a path below `root`, base64, or what `datasets` stores: {"bytes": ..., "path": ...}.
    """
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, bytes) and value:
        return value, None
    if not isinstance(value, str) or not value.strip():
        raise BadValue(f"{column} holds no image ({type(value).__name__})" if value else f"{column} is empty")
    if value.lower().endswith(IMAGE_ENDINGS):
        return read_inside(root, value), value
    try:
        return as_base64(column, value), None
    except BadValue as error:
        raise BadValue(f"{error}, and no path that ends like an image") from error
