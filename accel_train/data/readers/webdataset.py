"""WebDataset shards: tar files in which the files of one sample stand side by side, named KEY.jpg, KEY.txt, KEY.json.

A key is the path up to the first dot of the file's name. The caption is the text file, or else a field of the JSON file.
Members are read from the archive one sample at a time; nothing is extracted to disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from accel_train.data.readers.image_folder import SPLIT_FOLDERS
from accel_train.data.readers.records import (
    MAX_FILE_BYTES,
    SPLIT_NAME,
    BadRecord,
    BadValue,
    Columns,
    ImageRecord,
    Record,
    TextRecord,
    as_caption,
    as_id,
    files_by_split,
)
from accel_train.data.readers.rows import IMAGE_ENDINGS, TEXT_NAMES
from accel_train.data.readers.tar_members import Member, members
from accel_train.errors import UserError
from accel_train.json_text import read_json

MAX_IMAGE_BYTES = MAX_FILE_BYTES
MAX_TEXT_BYTES = 2**20


@dataclass
class Sample:
    """The files of one key that were read, by kind: image, txt, json. With faults it becomes bad records alone."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Name of the member, and what is wrong with it."""


def find_splits(source: Path) -> dict[str, list[Path]]:
    """Shards by the folder they are in (`train/00000.tar`) or by what their names begin with (`train-00000.tar`).

    Shards of one folder whose names all begin alike, but not with the name of a split, are `train`.
    """
    shards = files_by_split(source, (".tar",))
    if source.is_file():
        return shards
    folders = sorted({path.parent.name for path in source.glob("*/*.tar") if not path.parent.name.startswith(".")})
    if unusable := [name for name in folders if not SPLIT_NAME.match(name)]:
        raise UserError(f"{source}: {unusable[0]!r} can't be the name of a split; use letters, digits, '_' and '-'.")
    if folders and shards:
        raise UserError(f"{source} holds shards, and so does its folder {folders[0]}. Import one of them alone.")
    if folders:
        return {name: sorted((source / name).glob("*.tar")) for name in folders}
    beginnings = {"" if name.isdigit() else name for name in shards}
    if len(beginnings) == 1 and not beginnings & set(SPLIT_FOLDERS):
        return {"train": sorted(path for paths in shards.values() for path in paths)}
    if "" in beginnings:
        raise UserError(
            f"{source}: some shards are named after a split and some by a number alone. Put each split in a folder."
        )
    return shards


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """Each image, then its captions, shard after shard."""
    if columns != Columns(text=columns.text):
        raise UserError(
            "webdataset: an image is a file of its own, and its key is its id. Leave out all options for columns but "
            "--text-column, which names the field of the JSON files that holds the caption."
        )
    shards: dict[str, Path] = {}
    for shard in files:
        for sample in _samples(shard):
            where = f"{shard}: {sample.key!r}"
            if sample.key not in shards:
                shards[sample.key] = shard
                yield from _records(shard, sample, columns.text)
            elif shards[sample.key] == shard:
                yield BadRecord(where, "the key came before in this shard; the files of a sample stand side by side")
            else:
                yield BadRecord(where, f"the key came before in {shards[sample.key]}")


def _samples(shard: Path) -> Iterator[Sample]:
    """Members that follow each other and have the same key. Hidden files and files without an ending are left out."""
    sample: Sample | None = None
    for member in members(shard):
        path = PurePosixPath(member.name)
        stem, dot, ending = path.name.partition(".")
        if member.fault is None and not (stem and dot):
            continue
        key = str(path.parent / stem)
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = Sample(key)
        _take(sample, member, ending.lower())
    if sample is not None:
        yield sample


def _take(sample: Sample, member: Member, ending: str) -> None:
    """Reads a member if it is an image or a caption; other kinds (classes, masks, arrays) are not for us."""
    kind = "image" if "." + ending in IMAGE_ENDINGS else ending
    limit = MAX_IMAGE_BYTES if kind == "image" else MAX_TEXT_BYTES
    if member.fault is not None:
        sample.faults.append((member.name, member.fault))
    elif kind in ("image", "txt", "json"):
        if kind in sample.files:
            sample.faults.append((member.name, f"a second {kind} file of one sample"))
        elif member.size > limit:
            sample.faults.append((member.name, f"{member.size:,} bytes; at most {limit:,} are read"))
        else:
            sample.files[kind] = member.read()


def _records(shard: Path, sample: Sample, text_column: str | None) -> Iterator[Record]:
    for name, reason in sample.faults:
        yield BadRecord(f"{shard}: {name!r}", reason)
    if sample.faults:
        return
    where = f"{shard}: {sample.key!r}"
    try:
        key = as_id("the key", sample.key)
        if "image" not in sample.files:
            raise BadValue(
                f"lacks an image ({', '.join(IMAGE_ENDINGS)}); it has {', '.join(sample.files) or 'nothing'}"
            )
        captions = _captions(sample.files, text_column)
    except BadValue as error:
        yield BadRecord(where, str(error))
        return
    yield ImageRecord(where, key, sample.files["image"])
    for number, caption in enumerate(captions):
        yield TextRecord(where, f"{key}#{number}", caption, (key,))


def _captions(files: dict[str, bytes], text_column: str | None) -> list[str]:
    """All of the text file; or one field of the JSON file, a string or a list of them."""
    if "txt" in files and text_column is None:
        return [as_caption("the text file", _decoded("txt", files["txt"]).strip())]
    if "json" not in files:
        raise BadValue("lacks a caption (.txt or .json)" if text_column is None else "lacks a .json file")
    try:
        fields = read_json(_decoded("json", files["json"]))
    except ValueError as error:
        raise BadValue(f"its .json file is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise BadValue(f"its .json file holds a {type(fields).__name__} where fields by name belong")
    column = text_column or next((name for name in TEXT_NAMES if name in fields), None)
    if column is None or column not in fields:
        wanted = (
            repr(text_column) if text_column is not None else f"known to hold the caption ({', '.join(TEXT_NAMES)})"
        )
        raise BadValue(f"its .json file has no field {wanted}")
    found = fields[column]
    captions = [as_caption(column, caption) for caption in (found if isinstance(found, list) else [found])]
    if not captions:
        raise BadValue(f"{column} is empty")
    return captions


def _decoded(ending: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadValue(f"its .{ending} file is not UTF-8") from error
