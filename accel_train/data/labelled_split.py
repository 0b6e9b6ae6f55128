"""One split of a dataset of labelled texts, as a memory-mapped Arrow file.

FOLDER/dataset.json                       format version, task, labels, counts and fingerprint of each split
FOLDER/tokenizer/                         optional
FOLDER/SPLIT/samples.arrow                text_id string, text string, label int64
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from accel_train.data.arrow_split import ArrowRows, dataset_folder, open_tables, read_description
from accel_train.data.arrow_writer import TableWriter
from accel_train.errors import UserError

TASK = "sequence_classification"
SCHEMA = pa.schema([("text_id", pa.string()), ("text", pa.string()), ("label", pa.int64())])


@dataclass(frozen=True)
class LabelledSplit:
    """Texts of one split with their labels."""

    name: str
    fingerprint: str
    """Digest of all ids, texts and labels, written at import."""
    labels: tuple[str, ...]
    """Names of the classes; a label is a place in this list."""
    samples: ArrowRows


class LabelledSplitWriter:
    """Appends labelled texts, and hashes all of them into the fingerprint."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._table = TableWriter(folder / "samples.arrow", SCHEMA)
        self._digest = hashlib.blake2b(digest_size=16)
        self.num_samples = 0

    def add(self, text_id: str, text: str, label: int) -> None:
        self._table.append(text_id, text, label)
        self._digest.update(f"{text_id}\n{len(text)} {text}\n{label}\n".encode())
        self.num_samples += 1

    def close(self) -> dict[str, Any]:
        """Finishes the file; returns what dataset.json says of this split."""
        self._table.close()
        return {"num_samples": self.num_samples, "fingerprint": self._digest.hexdigest()}


def read_labels(path: str) -> tuple[str, ...]:
    """Names of the classes of a dataset, by label."""
    folder = dataset_folder(path)
    labels = read_description(folder, TASK, "num_samples").get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(name, str) for name in labels):
        raise UserError(
            f"{folder / 'dataset.json'}: labels is {labels!r}; it must list two names or more. Import it again."
        )
    return tuple(labels)


def open_labelled_split(path: str, split: str) -> LabelledSplit:
    """Opens one split, after checking that its file is whole and belongs to the description."""
    described, tables = open_tables(path, split, {"samples": SCHEMA}, TASK, "num_samples")
    labels, found = read_labels(path), tables["samples"].column("label")
    if len(found) and not 0 <= found.min() <= found.max() < len(labels):
        raise UserError(
            f"{tables['samples'].path}: label runs from {found.min()} to {found.max()}, and there are {len(labels)} labels. "
            "Import the dataset again."
        )
    return LabelledSplit(split, described["fingerprint"], labels, tables["samples"])
