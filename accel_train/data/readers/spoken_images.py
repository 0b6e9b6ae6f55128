"""JSON lines with an image id, a WAV file and captions in each, and the images that the ids name.

    {"image_id": 1514, "audio": "wav/01514.wav", "text": "blue square", "text_zh": "蓝色方块"}

Images come from the `*_imgs.tsv` files of a folder in Chinese-CLIP's format, or lie in a folder as ID.jpg, ID.png, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.data.readers import jsonl
from accel_train.data.readers.chinese_clip_tsv import IMAGES
from accel_train.data.readers.records import (
    BadRecord,
    BadValue,
    as_base64,
    as_caption,
    as_id,
    inside,
    read_bounded,
    read_inside,
    text_lines,
)
from accel_train.data.readers.rows import IMAGE_ENDINGS
from accel_train.errors import UserError


@dataclass(frozen=True, slots=True)
class SpokenRecord:
    """One line: which image, which recording, and its captions."""

    where: str
    image_id: str
    audio_id: str
    """The recording's path."""
    audio: bytes
    captions: tuple[str, ...]


def read(files: list[Path], text_columns: tuple[str, ...]) -> Iterator[SpokenRecord | BadRecord]:
    """Every line of some files, in order."""
    for path in files:
        for where, row in jsonl.objects_of(path):
            yield row if isinstance(row, BadRecord) else _record(where, row, text_columns, path.parent)


def _record(where: str, row: dict[str, Any], text_columns: tuple[str, ...], root: Path) -> SpokenRecord | BadRecord:
    missing = [name for name in ("image_id", "audio", *text_columns) if name not in row]
    if missing:
        return BadRecord(where, f"lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
    try:
        name = as_id("audio", row["audio"])
        return SpokenRecord(
            where,
            as_id("image_id", row["image_id"]),
            name,
            read_inside(root, name, "audio"),
            tuple(as_caption(column, row[column]) for column in text_columns),
        )
    except BadValue as error:
        return BadRecord(where, str(error))


def read_images(source: Path, wanted: set[str]) -> dict[str, bytes]:
    """The images with these ids; those that a source lacks or can't give are left out. Raises UserError."""
    if not source.exists():
        raise UserError(f"--images: {source} does not exist.")
    tables = [source] if source.is_file() else sorted(source.glob(f"*{IMAGES}"))
    if tables:
        return {name: image for path in tables for name, image in _images_of(path, wanted)}
    files = {path.stem: path for path in sorted(source.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS}
    if not files:
        raise UserError(f"--images: {source} holds neither *{IMAGES} nor images ({', '.join(IMAGE_ENDINGS)}).")
    return dict(_files_of(source, {name: files[name] for name in sorted(wanted & files.keys())}))


def _files_of(source: Path, files: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    for name, path in files.items():
        try:
            yield name, read_bounded(inside(source, path), "the image")
        except BadValue:
            continue  # as in _images_of


def _images_of(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    for _, line in text_lines(path):
        name, tab, image = (line or "").partition("\t")
        if tab and name in wanted:
            try:
                yield name, as_base64("the image", image)
            except BadValue:
                continue  # the importer names every sample whose image is missing
