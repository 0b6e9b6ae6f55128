"""Chinese-CLIP's LMDB folders: `SPLIT/imgs` and `SPLIT/pairs`, as its build_lmdb_dataset.py writes them.

imgs: image id -> base64 image, and num_images. pairs: "0", "1", ... -> pickled (image id, text id, text), and num_samples.
"""

import os
import pickle
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
)
from accel_train.errors import UserError

PLAIN_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "TUPLE", "TUPLE3"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}
"""What pickle.dumps writes for a tuple of integers and strings, in any protocol of Python 3: nothing that names or calls
anything."""
MAX_MEMO = 100
"""Places to remember values in. pickle reserves memory for as many as a record asks for."""
MAX_ID_BITS = 256
MAX_DIGITS = 18
MOST_MISSING = 1000
"""Records that may lack and are named one by one. A count can claim that more lack than anyone could wait for."""


def find_splits(source: Path) -> dict[str, list[Path]]:
    """The two environments of every split; the folder may also be the parent of `lmdb`."""
    for folder in (source, source / "lmdb"):
        found = sorted(path.parent.parent for path in folder.glob("*/*/data.mdb"))
        splits = {split.name: [split / "imgs", split / "pairs"] for split in dict.fromkeys(found)}
        missing = [part for parts in splits.values() for part in parts if not (part / "data.mdb").is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no LMDB environment there; a split has the folders imgs and pairs.")
        if splits:
            return splits
    return {}


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """Images first, then captions, one record for each pair."""
    images, pairs = files
    with _open(images) as transaction:
        seen = 0
        for key, value in transaction.cursor():
            if bytes(key) != b"num_images":
                seen += 1
                yield _image(f"{images}: key {_name(key)}", key, value)
        yield from _counted(images, transaction, b"num_images", seen)
    with _open(pairs) as transaction:
        for index in range(_count(pairs, transaction, b"num_samples")):
            value = transaction.get(b"%d" % index)
            where = f"{pairs}: key {index}"
            yield BadRecord(where, "missing") if value is None else _pair(where, value)


def _image(where: str, key: bytes, value: bytes) -> Record:
    image_id = None
    try:
        image_id = as_id("the image id", key.decode("utf-8"))
        return ImageRecord(where, image_id, as_base64("the image", value))
    except UnicodeDecodeError:
        return BadRecord(where, "the image id is not UTF-8")
    except BadValue as error:
        return BadRecord(where, str(error), image_id)


def _pair(where: str, value: bytes) -> Record:
    try:
        image_id, text_id, text = _unpickled(value)
        return TextRecord(
            where,
            as_id("the text id", text_id),
            as_caption("the text", text),
            (as_id("the image id", image_id),),
            is_pair=True,
        )
    except BadValue as error:
        return BadRecord(where, str(error))


def _unpickled(value: bytes) -> tuple[Any, Any, Any]:
    """The record, after a look at every instruction of the pickle: those of a plain tuple alone are carried out."""
    try:
        for opcode, argument, _ in pickletools.genops(value):
            if opcode.name not in PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"{opcode.name} has no place in a record of plain values")
            if "PUT" in opcode.name and int(argument or 0) > MAX_MEMO:
                raise pickle.UnpicklingError(f"{opcode.name} {argument} asks for too much memory")
        record = pickle.loads(value)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadValue(f"not a pickled record ({error!r})") from error
    if not isinstance(record, tuple) or len(record) != 3:
        raise BadValue(f"a pickled {type(record).__name__} that is no (image id, text id, text)")
    if any(not isinstance(part, int | str) for part in record):  # a tuple can look endless, so it is not shown
        raise BadValue("a pickled (image id, text id, text) holds other things than numbers and strings")
    if any(isinstance(part, int) and part.bit_length() > MAX_ID_BITS for part in record):
        raise BadValue(f"a pickled id has more than {MAX_ID_BITS} bits")
    return record


_open_in_process: dict[Path, tuple[int, Any, Any]] = {}
"""Process, environment and read transaction of each folder that `image_of` was asked about."""


def image_of(folder: Path, image_id: str) -> memoryview:
    """The base64 of an image, in LMDB's own memory. Raises KeyError if it is not there.

    The environment stays open, as LMDB refuses to open one twice. A process that was forked opens its own.
    """
    opened = _open_in_process.get(folder)
    if opened is None or opened[0] != os.getpid():
        if opened is not None:
            opened[1].close()  # this process's copy
        environment = _environment(folder)
        opened = os.getpid(), environment, environment.begin(buffers=True)
        _open_in_process[folder] = opened
    found = opened[2].get(image_id.encode())
    if found is None:
        raise KeyError(image_id)
    value: memoryview = found
    return value


def _environment(folder: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise UserError(
            f"{folder}: reading LMDB needs the package lmdb: pip install 'accel_train[lmdb]'", code="AT203"
        ) from error
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise UserError(f"{folder}: no LMDB environment that can be read ({error}).") from error


@contextmanager
def _open(folder: Path) -> Iterator[Any]:
    """A read transaction. The environment is closed at once, so that it can be opened again."""
    environment = _environment(folder)
    import lmdb  # there, now that it has opened something

    try:
        with environment.begin() as transaction:
            yield transaction
    except lmdb.Error as error:
        raise UserError(f"{folder}: the LMDB environment is damaged ({error}).") from error
    finally:
        environment.close()


def _count(folder: Path, transaction: Any, key: bytes) -> int:
    value = transaction.get(key)
    if value is None or not bytes(value).isdigit() or len(value) > MAX_DIGITS:
        shown = None if value is None else bytes(value[:MAX_DIGITS])
        raise UserError(f"{folder}: key {_name(key)} is {shown!r}; it holds the number of records.")
    there = int(transaction.stat()["entries"]) - 1
    if int(value) > there + MOST_MISSING:
        raise UserError(f"{folder}: key {_name(key)} says {int(value):,} records, and there are {there:,}.")
    return int(value)


def _counted(folder: Path, transaction: Any, key: bytes, seen: int) -> Iterator[BadRecord]:
    promised = _count(folder, transaction, key)
    if promised != seen:
        yield BadRecord(f"{folder}: key {_name(key)}", f"says {promised} records, and there are {seen}")


def _name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
