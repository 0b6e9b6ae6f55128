"""Chinese-CLIP's TSV and LMDB files read where they are: nothing is converted, and images are not stored again.

The first run reads such a source once. It checks every record as `accel-train import` does, but decodes no image, and keeps
an index in the cache of its user: ids, captions, links and keys as in a dataset folder, and where each image stands in its
file. Rows, keys and fingerprint are those that an import would give, so a run may go on with the one or the other.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from accel_train.data.arrow_split import (
    IN_PLACE_SCHEMAS,
    ArrowRows,
    Split,
    check_tables,
)
from accel_train.data.readers import chinese_clip_lmdb, chinese_clip_tsv
from accel_train.data.readers.records import BadValue, Columns, as_base64
from accel_train.data.split_import import BadRecords, SplitImport
from accel_train.data.transforms import UnreadableImage
from accel_train.errors import UserError
from accel_train.json_text import read_json

INDEX_VERSION = 1
INDEX_FILE = "index.json"
READERS = {"chinese_clip_tsv": chinese_clip_tsv, "chinese_clip_lmdb": chinese_clip_lmdb}


@dataclass(frozen=True)
class Source:
    """A folder with files of one format, and those of each split."""

    folder: Path
    format: str
    files: dict[str, list[Path]]


class Encoded(Protocol):
    """Where the base64 of a source's images comes from; opened anew in each process. Must pickle (spawn)."""

    def read(self, image_id: str, place: int, length: int) -> bytes | memoryview:
        """Raises OSError or KeyError if it is not there any more."""
        ...


class ImagesInPlace:
    """The rows of `images.arrow`, whose column `image` is read from the source."""

    def __init__(self, rows: ArrowRows, encoded: Encoded) -> None:
        self._rows = rows
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._rows)

    def value(self, column: str, row: int) -> Any:
        """One cell. Raises UnreadableImage for an image that the source does not hold any more."""
        if column != "image":
            return self._rows.value(column, row)
        image_id, place, length = (self._rows.value(name, row) for name in ("image_id", "place", "length"))
        try:
            return as_base64("the image", self._encoded.read(image_id, place, length))
        except (BadValue, OSError, KeyError) as error:
            raise UnreadableImage(f"not in its place in the source ({error})") from error

    def column(self, name: str) -> np.ndarray:
        return self._rows.column(name)


class TsvImages:
    """`SPLIT_imgs.tsv`, read by offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def read(self, image_id: str, place: int, length: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        return os.pread(self._file, length, place)


@dataclass(frozen=True)
class LmdbImages:
    """`SPLIT/imgs`, read by key."""

    folder: Path

    def read(self, image_id: str, place: int, length: int) -> memoryview:
        return chinese_clip_lmdb.image_of(self.folder, image_id)


def find_in_place(path: str) -> Source | None:
    """What `data.path` names if it is no dataset folder but files that are read in place."""
    folder = Path(path)
    if not folder.is_dir() or (folder / "dataset.json").is_file():
        return None
    found = ((name, reader.find_splits(folder)) for name, reader in READERS.items())
    return next((Source(folder.resolve(), name, files) for name, files in found if files), None)


def open_in_place(source: Source, split: str) -> Split:
    """One split; its index is made first where there is none, or where the files have changed since. Raises UserError."""
    if split not in source.files:
        raise UserError(f"data.path: {source.folder} has no split {split!r}; it has {', '.join(sorted(source.files))}.")
    folder = index_folder(source, split)
    fingerprint = _indexed(source, split, folder)
    tables = {name: ArrowRows(folder / f"{name}.arrow", schema) for name, schema in IN_PLACE_SCHEMAS.items()}
    check_tables(tables)
    images = source.files[split][0]
    encoded = TsvImages(images) if source.format == "chinese_clip_tsv" else LmdbImages(images)
    return Split(split, fingerprint, ImagesInPlace(tables["images"], encoded), tables["texts"], tables["pairs"])


def index_folder(source: Source, split: str) -> Path:
    """`$XDG_CACHE_HOME/accel_train/in_place/...`, below ~/.cache without that variable; one for each source and split."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(source.folder).encode()).hexdigest()[:16]
    return cache / "accel_train" / "in_place" / f"{source.folder.name}-{digest}" / split


def _indexed(source: Source, split: str, folder: Path) -> str:
    """Makes the index if it has to be made; the other ranks of this machine wait for that. Returns the fingerprint."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{split}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fingerprint = _known(source, split, folder)
            return _make_index(source, split, folder) if fingerprint is None else fingerprint
    except OSError as error:
        raise UserError(
            f"data.path: the index of {source.folder} can't be kept in {folder}: {error.strerror}. Set XDG_CACHE_HOME to a "
            "folder that can be written, or convert the source with `accel-train import`."
        ) from error


def _known(source: Source, split: str, folder: Path) -> str | None:
    """The fingerprint in an index that is whole and was made from the files as they are."""
    try:
        index = read_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
        fits = index["version"] == INDEX_VERSION and index["files"] == _state_of(source, split)
        return str(index["fingerprint"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state_of(source: Source, split: str) -> list[list[Any]]:
    """Names, sizes and times of a split's files: a file that is written anew is indexed anew."""
    paths = [path / "data.mdb" if path.is_dir() else path for path in source.files[split]]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _make_index(source: Source, split: str, folder: Path) -> str:
    print(f"reading {source.folder}, split {split}, once; its index is kept in {folder}", file=sys.stderr, flush=True)
    files, bad = _state_of(source, split), BadRecords()
    aside = folder.with_name(f"{split}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        importer = SplitImport(aside.parent, aside.name, None, bad, in_place=True)
        for record in READERS[source.format].read(source.files[split], Columns()):
            importer.add(record)
        described = importer.finish()[aside.name]
        bad.refuse_beyond(
            0,
            str(source.folder),
            "Repair the source, or convert it with `accel-train import`, whose --max-bad-records leaves bad ones out.",
        )
        if not described["num_pairs"]:
            raise UserError(f"data.path: {source.folder}, split {split}: there is no pair of an image and a caption.")
        content = {"version": INDEX_VERSION, "fingerprint": described["fingerprint"], "files": files}
        (aside / INDEX_FILE).write_text(json.dumps(content), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(described["fingerprint"])
