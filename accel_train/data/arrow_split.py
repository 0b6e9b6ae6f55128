"""One split of a dataset folder: images, texts and the pairs between them, as memory-mapped Arrow files.

    FOLDER/dataset.json                       format version, source, counts and fingerprint of each split
    FOLDER/tokenizer/                         optional
    FOLDER/SPLIT/images.arrow                 image_id string, image binary (encoded as in the source), image_key int64
    FOLDER/SPLIT/texts.arrow                  text_id string, text string, text_key int64
    FOLDER/SPLIT/pairs.arrow                  image_row int64, text_row int64

A key is a 63-bit hash of the content, so rows that show the same image or say the same text share it. Images and
captions are stored once however many pairs they are in.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from accel_train.errors import UserError
from accel_train.json_text import read_json

FORMAT_VERSION = 1
MAY_LACK = "explanation"
ROWS_OF = {"image_row": "images", "audio_row": "recordings", "text_row": "texts"}
"""The table whose rows a column names."""
SAMPLE_PREFIX = "sample:"
SAMPLE_FOLDER = Path(__file__).parent.parent / "sample"
SCHEMAS = {
    "images": pa.schema([("image_id", pa.string()), ("image", pa.binary()), ("image_key", pa.int64())]),
    "texts": pa.schema([("text_id", pa.string()), ("text", pa.string()), ("text_key", pa.int64())]),
    "pairs": pa.schema([("image_row", pa.int64()), ("text_row", pa.int64())]),
}
IN_PLACE_SCHEMAS = SCHEMAS | {
    "images": pa.schema(
        [("image_id", pa.string()), ("place", pa.int64()), ("length", pa.int64()), ("image_key", pa.int64())]
    )
}
"""Of images that stay in their source: `length` bytes of base64 from `place` on; both 0 where the id finds them."""


class ArrowRows:
    """Random access to the rows of one Arrow IPC file.

    The file is mapped once in each process, on the first read there: loader workers may be forked or spawned, and a
    pickled copy carries only the path.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._process: int | None = None
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._starts: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "schema": self.schema, "_process": None, "_columns": {}, "_starts": []}

    def __len__(self) -> int:
        return len(self._opened()[self.schema.names[0]])

    def value(self, column: str, row: int) -> Any:
        """One cell as a Python value."""
        chunks = self._opened()[column]
        index = bisect_right(self._starts, row) - 1
        return chunks.chunk(index)[row - self._starts[index]].as_py()

    def column(self, name: str) -> np.ndarray:
        """A whole column: numbers as they are, ids as objects."""
        column = self._opened()[name]
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        return _numbers(column) if is_number else column.to_numpy()

    def num_bytes(self, name: str) -> np.ndarray:
        """Length of each text of a column in UTF-8, int32."""
        return _numbers(pc.binary_length(self._opened()[name])).astype(np.int32)

    def check(self) -> None:
        """Looks at every offset and text of the file once. Raises UserError: a damaged file can have memory read that is
        not the file's, and nulls stand for nothing here but a missing explanation."""
        for name, column in self._opened().items():
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{self.path}: {name} is damaged ({error}). Import the dataset again.", code="AT501"
                ) from error
            if column.null_count and name != MAY_LACK:
                raise UserError(
                    f"{self.path}: {name} lacks {column.null_count} values. Import the dataset again.", code="AT501"
                )

    def _opened(self) -> dict[str, pa.ChunkedArray]:
        if self._process != os.getpid():
            try:
                options = pa.ipc.IpcReadOptions(use_threads=False)
                table = pa.ipc.open_file(pa.memory_map(str(self.path)), options=options).read_all()
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{self.path}: not a whole Arrow file ({error}). Import the dataset again.", code="AT501"
                ) from error
            if table.schema != self.schema:
                found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
                wanted = ", ".join(f"{field.name} {field.type}" for field in self.schema)
                raise UserError(f"{self.path}: holds the columns {found}; a dataset has {wanted}. Import it again.")
            self._columns = {name: table.column(name) for name in self.schema.names}
            lengths = [len(chunk) for chunk in self._columns[self.schema.names[0]].chunks]
            self._starts = [0, *np.cumsum(lengths).tolist()[:-1]]
            self._process = os.getpid()
        return self._columns


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls as Arrow holds it. Arrow's own `to_numpy` imports pandas, half a second of every start."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
        if len(chunk)
    ]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, dtype), *chunks])


class Rows(Protocol):
    """Random access to the rows of a table, wherever it lies."""

    def __len__(self) -> int: ...

    def value(self, column: str, row: int) -> Any:
        """One cell as a Python value."""
        ...

    def column(self, name: str) -> np.ndarray:
        """A whole column."""
        ...


@dataclass(frozen=True)
class Split:
    """Images, texts and pairs of one split."""

    name: str
    fingerprint: str
    """Digest of all ids, contents and pairs, written at import."""
    images: Rows
    texts: ArrowRows
    pairs: ArrowRows

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_texts(self) -> int:
        return len(self.texts)

    @property
    def num_pairs(self) -> int:
        return len(self.pairs)

    def matches(self) -> Tensor:
        """All pairs as (image row, text row), (num_pairs, 2) int64."""
        columns = [self.pairs.column("image_row"), self.pairs.column("text_row")]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def dataset_folder(path: str) -> Path:
    """The folder that `data.path` names: a folder written by `accel-train import`, or `sample:NAME`."""
    if path.startswith(SAMPLE_PREFIX):
        folder = SAMPLE_FOLDER / path.removeprefix(SAMPLE_PREFIX)
        known = sorted(item.name for item in SAMPLE_FOLDER.iterdir() if (item / "dataset.json").is_file())
        if folder.name not in known:
            names = ", ".join(SAMPLE_PREFIX + name for name in known)
            raise UserError(f"data.path: no sample {path!r}; this package holds {names}.")
        return folder
    folder = Path(path)
    if not (folder / "dataset.json").is_file():
        found = "holds no dataset.json" if folder.is_dir() else "is no folder"
        seen_from = (
            "" if folder.is_absolute() or folder.is_dir() else f" in {Path.cwd()}, where this command was started"
        )
        raise UserError(
            f"data.path: {path} {found}{seen_from}. Write a dataset there with `accel-train import`"
            f"{', or correct the path' * (not folder.is_dir())}.",
            code="AT500",
        )
    return folder


def read_description(folder: Path, task: str = "contrastive", count: str = "num_pairs") -> dict[str, Any]:
    """dataset.json, checked as far as this version of the format goes. `count` is what a split of the task says of itself.

    Raises UserError for a dataset that was imported for another task.
    """
    path = folder / "dataset.json"
    try:
        description = read_json(path.read_text(encoding="utf-8"))
        version, splits = description["format_version"], description["splits"]
        made_for = description.get("task", "contrastive")
        counted = made_for != task or all(isinstance(split[count], int) for split in splits.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a dataset description ({error!r}). Import the dataset again.", code="AT501"
        ) from error
    if version != FORMAT_VERSION or not counted:
        raise UserError(f"{path}: format version {version}; this program reads {FORMAT_VERSION}. Import it again.")
    if made_for != task:
        raise UserError(
            f"data.path: {folder} was imported for the task {made_for}, not for {task}. Import it with --task {task}.",
            code="AT502",
        )
    return description


def open_arrow_split(path: str, split: str) -> Split:
    """Opens one split of a dataset folder, after checking that its files are whole and belong together."""
    described, tables = open_tables(path, split, SCHEMAS)
    return Split(split, described["fingerprint"], **tables)


def open_tables(
    path: str, split: str, schemas: Mapping[str, pa.Schema], task: str = "contrastive", count: str = "num_pairs"
) -> tuple[dict[str, Any], dict[str, ArrowRows]]:
    """What dataset.json says of a split, and its tables by name, each with as many rows as are described.

    task, count: as in `read_description`. Raises UserError.
    """
    folder = dataset_folder(path)
    splits = read_description(folder, task, count)["splits"]
    if split not in splits:
        raise UserError(f"{path}: no split {split!r}; it has {', '.join(sorted(splits))}.", code="AT503")
    tables = {name: ArrowRows(folder / split / f"{name}.arrow", schema) for name, schema in schemas.items()}
    for name, rows in tables.items():
        described = splits[split].get(f"num_{name}")
        if described != len(rows):
            raise UserError(
                f"{rows.path}: has {len(rows)} rows, but dataset.json says {described}. They do not belong together; "
                "import the dataset again.",
                code="AT501",
            )
    if not isinstance(splits[split].get("fingerprint"), str):
        raise UserError(
            f"{folder / 'dataset.json'}: the split {split} has no fingerprint. Import the dataset again.", code="AT501"
        )
    check_tables(tables)
    return splits[split], tables


def check_tables(tables: Mapping[str, ArrowRows]) -> None:
    """Whether the files are sound and name only rows that there are. Raises UserError."""
    for rows in tables.values():
        rows.check()
    for rows in tables.values():
        for column in ROWS_OF.keys() & set(rows.schema.names):
            found, there = rows.column(column), len(tables[ROWS_OF[column]])
            if len(found) and not 0 <= found.min() <= found.max() < there:
                raise UserError(
                    f"{rows.path}: {column} runs from {found.min()} to {found.max()}, and there are {there} rows. Import "
                    "the dataset again."
                )
