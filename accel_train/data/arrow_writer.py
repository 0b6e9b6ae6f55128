"""Writes one split in the format that `arrow_split.py` reads."""

import hashlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from accel_train.data.arrow_split import IN_PLACE_SCHEMAS, SCHEMAS

BATCH_ROWS = 1024
BATCH_BYTES = 32 * 2**20
"""A record batch is closed at this many rows or bytes: small enough to build in memory, and far below Arrow's 2 GiB."""


def content_key(content: bytes) -> int:
    """A 63-bit hash: rows with the same key show the same image or say the same text."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


class TableWriter:
    """Appends rows to one Arrow IPC file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pa.ipc.new_file(str(path), schema)
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def append(self, *row: Any) -> None:
        """One row, in the order of the schema."""
        self._rows.append(row)
        self._bytes += sum(len(value) for value in row if isinstance(value, bytes))
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0


class SplitWriter:
    """Appends images, then texts with the rows of their images, and hashes all of it into the fingerprint.

    `in_place`: images stay in their source, and what is written is where they are there.
    """

    def __init__(self, folder: Path, *, in_place: bool = False) -> None:
        folder.mkdir(parents=True)
        schemas = IN_PLACE_SCHEMAS if in_place else SCHEMAS
        self._tables = {name: TableWriter(folder / f"{name}.arrow", schema) for name, schema in schemas.items()}
        self._in_place = in_place
        self._digest = hashlib.blake2b(digest_size=16)
        self._image_keys = array("q")
        self.num_texts = 0
        self.num_pairs = 0

    @property
    def num_images(self) -> int:
        return len(self._image_keys)

    def add_image(self, image_id: str, image: bytes, place: tuple[int, int] = (0, 0)) -> int:
        """Returns the image's row. `place` is where it starts in its source and how long it is there."""
        key = content_key(image)
        self._tables["images"].append(image_id, *(place if self._in_place else (image,)), key)
        self._digest.update(f"image {image_id}\n{key}\n".encode())
        self._image_keys.append(key)
        return len(self._image_keys) - 1

    def image_key(self, row: int) -> int:
        return self._image_keys[row]

    def add_text(self, text_id: str, text: str, image_rows: Iterable[int]) -> None:
        """A caption and one pair for each of its images."""
        key = content_key(text.encode())
        rows = list(image_rows)
        self._tables["texts"].append(text_id, text, key)
        self._digest.update(f"text {text_id}\n{key} {rows}\n".encode())
        for row in rows:
            self._tables["pairs"].append(row, self.num_texts)
        self.num_texts += 1
        self.num_pairs += len(rows)

    def close(self) -> dict[str, Any]:
        """Finishes the files; returns what dataset.json says of this split."""
        for table in self._tables.values():
            table.close()
        return {
            "num_images": self.num_images,
            "num_texts": self.num_texts,
            "num_pairs": self.num_pairs,
            "fingerprint": self._digest.hexdigest(),
        }
