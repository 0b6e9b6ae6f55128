"""One split of a dataset of spoken images: images, recordings and captions, and which of them belong together.

FOLDER/dataset.json                       format version, task, counts and fingerprint of each split
FOLDER/tokenizer/                         optional
FOLDER/SPLIT/images.arrow                 image_id string, image binary (encoded as in the source), image_key int64
FOLDER/SPLIT/recordings.arrow             audio_id string, audio binary (a WAV file), audio_key int64
FOLDER/SPLIT/texts.arrow                  text_id string, text string, text_key int64
FOLDER/SPLIT/samples.arrow                image_row int64, audio_row int64, text_row int64
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from accel_train.data.arrow_split import SCHEMAS, ArrowRows, open_tables
from accel_train.data.arrow_writer import TableWriter, content_key

TASK = "multimodal_llm"
SPOKEN_SCHEMAS = {
    "images": SCHEMAS["images"],
    "recordings": pa.schema([("audio_id", pa.string()), ("audio", pa.binary()), ("audio_key", pa.int64())]),
    "texts": SCHEMAS["texts"],
    "samples": pa.schema([("image_row", pa.int64()), ("audio_row", pa.int64()), ("text_row", pa.int64())]),
}
ROWS = {"image": "image_row", "audio": "audio_row", "text": "text_row"}
"""The column of `samples` for each modality."""


@dataclass(frozen=True)
class SpokenSplit:
    """Images, recordings, texts and samples of one split."""

    name: str
    fingerprint: str
    """Digest of all ids, contents and samples, written at import."""
    images: ArrowRows
    recordings: ArrowRows
    texts: ArrowRows
    samples: ArrowRows

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    def matches(self, query: str, target: str) -> Tensor:
        """What belongs together of two modalities, as rows (query, target): (pairs, 2) int64, each pair once."""
        columns = [self.samples.column(ROWS[kind]) for kind in (query, target)]
        return torch.from_numpy(np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0))


def open_spoken_split(path: str, split: str) -> SpokenSplit:
    """Opens one split, after checking that its files are whole and belong together. Raises UserError."""
    described, tables = open_tables(path, split, SPOKEN_SCHEMAS, TASK, "num_samples")
    return SpokenSplit(split, described["fingerprint"], **tables)


class SpokenSplitWriter:
    """Appends images, recordings and texts, then samples of their rows, and hashes all of it into the fingerprint."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._tables = {name: TableWriter(folder / f"{name}.arrow", schema) for name, schema in SPOKEN_SCHEMAS.items()}
        self._counts = dict.fromkeys(SPOKEN_SCHEMAS, 0)
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, table: str, name: str, content: bytes | str) -> int:
        """An image, a recording or a text with its id; returns its row."""
        key = content_key(content.encode() if isinstance(content, str) else content)
        self._tables[table].append(name, content, key)
        return self._count(table, f"{name}\n{key}")

    def add_sample(self, image_row: int, audio_row: int, text_row: int) -> None:
        self._tables["samples"].append(image_row, audio_row, text_row)
        self._count("samples", f"{image_row} {audio_row} {text_row}")

    def _count(self, table: str, line: str) -> int:
        self._digest.update(f"{table} {line}\n".encode())
        self._counts[table] += 1
        return self._counts[table] - 1

    def close(self) -> dict[str, Any]:
        """Finishes the files; returns what dataset.json says of this split."""
        for table in self._tables.values():
            table.close()
        return {f"num_{name}": count for name, count in self._counts.items()} | {
            "fingerprint": self._digest.hexdigest()
        }
