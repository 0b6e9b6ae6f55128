"""What every reader yields, and the checks on single values that readers share."""

import binascii
import codecs
import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.errors import UserError

try:  # forty times as fast, and it reads the same
    from pybase64 import b64decode
except ImportError:
    from base64 import b64decode

MAX_ID_LENGTH = 1000
MAX_FILE_BYTES = 256 * 2**20
"""Of one image or recording. An uncompressed image of the most pixels that are admitted is smaller."""
MAX_LINE_BYTES = 2 * MAX_FILE_BYTES
"""An image of that size in base64 fits."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SHARD = re.compile(r"^(?P<split>.+?)(?:-\d+-of-\d+|[-_.]\d+)?$")
SPLIT_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image, still encoded. `where` is the file and the line or key it was read from."""

    where: str
    image_id: str
    image: bytes
    place: tuple[int, int] = (0, 0)
    """Offset and length in bytes of its base64 in the file, where the reader knows them."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One caption and the images it describes."""

    where: str
    text_id: str
    text: str
    image_ids: tuple[str, ...]
    is_pair: bool = False
    """The format has a record for each pair: a text id that comes again adds an image. Elsewhere that is an error."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that can't be used, and why. `image_id` if it was an image whose id is known."""

    where: str
    reason: str
    image_id: str | None = None


Record = ImageRecord | TextRecord | BadRecord


@dataclass(frozen=True)
class Columns:
    """Names of columns in table-like formats. None: the first known name that the table has."""

    image: str | None = None
    text: str | None = None
    image_id: str | None = None
    text_id: str | None = None


class BadValue(ValueError):
    """A value that breaks a rule; the message is the reason for a BadRecord."""


def as_id(name: str, value: Any) -> str:
    """Ids are integers or strings, not empty, on one line and without tabs."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadValue(f"{name} is {_shown(value)}; an id is a string or an integer")
    text = str(value)
    if not text.strip() or len(text) > MAX_ID_LENGTH or CONTROL_CHARACTERS.search(text):
        raise BadValue(
            f"{name} is {_shown(text)}; an id is 1 to {MAX_ID_LENGTH} characters without tabs or line breaks"
        )
    return _encodable(name, text)


def as_caption(name: str, value: Any) -> str:
    """A string with something in it."""
    if not isinstance(value, str):
        raise BadValue(f"{name} is {_shown(value)}; a caption is a string")
    if not value.strip():
        raise BadValue(f"{name} is empty")
    return _encodable(name, value)


def as_base64(name: str, value: str | bytes | memoryview) -> bytes:
    """Decodes base64, in the usual alphabet or the one for URLs."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    if b"-" in data or b"_" in data:
        data = data.translate(bytes.maketrans(b"-_", b"+/"))
    try:
        decoded: bytes = b64decode(data.strip(), validate=True)
    except binascii.Error as error:
        raise BadValue(f"{name} is not complete base64 ({error})") from error
    if not decoded:
        raise BadValue(f"{name} is empty")
    return decoded


def read_inside(root: Path, name: str, kind: str = "image") -> bytes:
    """The file `name` under `root`; a path or a link that leads out of it is refused (BadValue)."""
    base = os.path.abspath(root)
    path = Path(os.path.normpath(os.path.join(base, name)))
    if CONTROL_CHARACTERS.search(name) or not path.is_relative_to(base):
        raise BadValue(f"the {kind} path {_shown(name)} leads out of {root}")
    return read_bounded(inside(Path(base), path), f"the {kind} file {name[:MAX_ID_LENGTH]}")


def inside(root: Path, path: Path) -> Path:
    """The file that a path below `root` means. Raises BadValue where it is a link that leads out of `root`."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise BadValue(
            f"{_shown(path.name)} is a link that leads out of {root}. To take what links lead to, import a copy made by "
            "`cp -rL`"
        )
    return real


def read_bounded(path: Path, what: str) -> bytes:
    """A plain file of at most MAX_FILE_BYTES; no device and no pipe, which may never end. Raises BadValue."""
    try:
        if path.exists() and not path.is_file():
            raise BadValue(f"{what} is not a plain file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadValue(f"{what} can't be read ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadValue(f"{what} has more than {MAX_FILE_BYTES:,} bytes")
    return content


def text_lines(path: Path) -> Iterator[tuple[str, str | None]]:
    """Lines as (where, text). The text is None where a line is not UTF-8. A byte-order mark is dropped.

    Raises UserError for a line that no record of ours is as long as.
    """
    return ((where, text) for where, _, text in placed_lines(path))


def placed_lines(path: Path) -> Iterator[tuple[str, int, str | None]]:
    """As `text_lines`, each with the offset of its first byte."""
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            where = f"{path}:{number}"
            if len(line) == MAX_LINE_BYTES:
                raise UserError(f"{where}: a line of {MAX_LINE_BYTES:,} bytes or more; this is no file of records.")
            start, offset = offset, offset + len(line)
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                start, line = start + len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
            try:
                yield where, start, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield where, start, None


def files_by_split(source: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files of some endings in a folder, by the split that their names begin with (`train.csv`, `train-00000-of-00004`).

    A single file is the split `train` unless its name is one of the usual names of splits.
    """
    if source.is_file():
        if not source.name.endswith(endings):
            return {}
        stem = split_of(source)
        return {stem if stem in ("train", "valid", "val", "validation", "dev", "test") else "train": [source]}
    splits: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.endswith(endings) and not path.name.startswith((".", "_")):
            splits.setdefault(split_of(path), []).append(path)
    return splits


def split_of(path: Path) -> str:
    """The split that a file name begins with."""
    found = SHARD.match(path.name.split(".")[0])
    name = found["split"] if found else path.stem
    if not SPLIT_NAME.match(name):
        raise UserError(f"{path}: {name!r} can't be the name of a split; use letters, digits, '_' and '-'.")
    return name


def _encodable(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadValue(f"{name} is not valid UTF-8") from error
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
