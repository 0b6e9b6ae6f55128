"""Folders of image files. Captions stand beside them, or are the names of the files or of their folders."""

from collections.abc import Iterator
from pathlib import Path

from accel_train.data.readers.records import (
    BadRecord,
    BadValue,
    Columns,
    ImageRecord,
    Record,
    TextRecord,
    as_caption,
    as_id,
    inside,
    read_bounded,
    text_lines,
)
from accel_train.data.readers.rows import IMAGE_ENDINGS

SPLIT_FOLDERS = ("train", "valid", "val", "validation", "dev", "test")


def find_splits(source: Path) -> dict[str, list[Path]]:
    """Subfolders named like splits, or the whole folder as `train`."""
    if not source.is_dir():
        return {}
    named = {name: [source / name] for name in SPLIT_FOLDERS if (source / name).is_dir()}
    splits = named or {"train": [source]}
    return splits if any(_is_image(path) for path in source.rglob("*")) else {}


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """Each image, then its captions. One rule holds for a split: if any image has a text file beside it (same name,
    ending .txt, a caption a line) all must have one; else if images lie in subfolders, the subfolder's name is the caption;
    else the file's name without its ending."""
    (folder,) = files
    images = sorted(path for path in folder.rglob("*") if _is_image(path))
    has_sidecars = any(path.with_suffix(".txt").is_file() for path in images)
    has_subfolders = any(path.parent != folder for path in images)
    for path in images:
        image_id = path.relative_to(folder).as_posix()
        try:
            yield ImageRecord(str(path), as_id("the path", image_id), read_bounded(inside(folder, path), "it"))
        except BadValue as error:
            yield BadRecord(str(path), str(error))
            continue
        if has_sidecars:
            yield from _sidecar(folder, path, image_id)
        else:
            caption = path.parent.name if has_subfolders else path.stem
            yield _text(str(path), image_id, 0, caption)


def _sidecar(folder: Path, path: Path, image_id: str) -> Iterator[Record]:
    sidecar = path.with_suffix(".txt")
    try:
        inside(folder, sidecar)
    except BadValue as error:
        yield BadRecord(str(path), str(error))
        return
    if not sidecar.is_file():
        yield BadRecord(str(path), f"no {sidecar.name} beside it, and other images have one")
        return
    number = 0
    for where, line in text_lines(sidecar):
        if line is None:
            yield BadRecord(where, "not UTF-8")
        elif line.strip():
            yield _text(where, image_id, number, line)
            number += 1
    if number == 0:
        yield BadRecord(str(sidecar), "no caption in it")


def _text(where: str, image_id: str, number: int, caption: str) -> Record:
    try:
        return TextRecord(where, f"{image_id}#{number}", as_caption("the caption", caption), (image_id,))
    except BadValue as error:
        return BadRecord(where, str(error))


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_ENDINGS) and not path.name.startswith(".") and path.is_file()
