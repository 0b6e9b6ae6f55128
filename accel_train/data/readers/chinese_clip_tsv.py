"""Chinese-CLIP's text files: `{split}_imgs.tsv` (id TAB base64 image) and `{split}_texts.jsonl`.

A line of the second is {"text_id": 8428, "text": "高级感托特包", "image_ids": [1076345, 517602]}.
"""

from collections.abc import Iterator
from pathlib import Path

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
    placed_lines,
    text_lines,
)
from accel_train.errors import UserError
from accel_train.json_text import read_json

IMAGES, TEXTS = "_imgs.tsv", "_texts.jsonl"


def find_splits(source: Path) -> dict[str, list[Path]]:
    """The image file and the text file of every split in a folder."""
    if not source.is_dir():
        return {}
    splits = {}
    for images in sorted(source.glob("*" + IMAGES)):
        split = images.name.removesuffix(IMAGES)
        texts = source / (split + TEXTS)
        if not texts.is_file():
            raise UserError(f"{images} has no {texts.name} beside it. The two files of a split belong together.")
        splits[split] = [images, texts]
    return splits


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """Images first, then captions."""
    images, texts = files
    for where, start, line in placed_lines(images):
        yield _image(where, start, line)
    for where, line in text_lines(texts):
        yield _text(where, line)


def _image(where: str, start: int, line: str | None) -> Record:
    if line is None:
        return BadRecord(where, "not UTF-8")
    parts = line.split("\t")
    if len(parts) != 2:
        return BadRecord(where, f"{len(parts)} fields between tabs; a line is an id, a tab and a base64 image")
    image_id = None
    try:
        image_id = as_id("the image id", parts[0])
        place = start + len(parts[0].encode()) + 1, len(parts[1].encode())
        return ImageRecord(where, image_id, as_base64("the image", parts[1]), place)
    except BadValue as error:
        return BadRecord(where, str(error), image_id)


def _text(where: str, line: str | None) -> Record:
    if line is None:
        return BadRecord(where, "not UTF-8")
    try:
        value = read_json(line)
    except ValueError as error:
        return BadRecord(where, f"not JSON ({error})")
    if not isinstance(value, dict):
        return BadRecord(where, f"a {type(value).__name__} where an object with text_id, text and image_ids belongs")
    missing = [name for name in ("text_id", "text", "image_ids") if name not in value]
    if missing:
        return BadRecord(where, f"lacks {', '.join(missing)}; it has {', '.join(value) or 'nothing'}")
    if not isinstance(value["image_ids"], list) or not value["image_ids"]:
        return BadRecord(where, "image_ids is no list with at least one image id")
    try:
        image_ids = tuple(as_id("an image id", image_id) for image_id in value["image_ids"])
        return TextRecord(where, as_id("text_id", value["text_id"]), as_caption("text", value["text"]), image_ids)
    except BadValue as error:
        return BadRecord(where, str(error))
