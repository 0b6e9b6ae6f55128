"""Features of images and texts in one file, as `accel-train embed` writes them and distillation reads them.

    NAME.safetensors    image_features (num_images, D), text_features (num_texts, D), both fp32 and optional; image_ids and
                        text_ids, each a JSON list as UTF-8 bytes (a header may hold 100 MB, ids of millions of rows more);
                        the rest as JSON in the header's metadata, under `accel_train`
    NAME.parquet        a row for each feature: kind (image or text), id, features list<float>; the rest in the same JSON

Rows stand in the order of the data set, so row k is the feature of image (or text) row k.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel_train.errors import UserError
from accel_train.json_text import read_json

FORMAT = "accel_train features 1"
METADATA = "accel_train"
"""One key for everything: the order of several would differ from one writing to the next."""
ENDINGS = (".safetensors", ".parquet")
KINDS = ("image", "text")
ROWS_AT_ONCE = 65536
SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("features", pa.list_(pa.float32()))])


@dataclass(slots=True)
class FeatureFile:
    """Features of one data set (or folder of images, or file of texts) by one model."""

    image_features: Tensor | None
    """(num_images, D), L2-normalised. None: no images were embedded."""
    text_features: Tensor | None
    fingerprint: str | None
    """The split's (`Split.fingerprint`). None where the input was not a split of a data set."""
    source: str
    """The model, in words."""
    image_ids: list[str] = field(default_factory=list)
    text_ids: list[str] = field(default_factory=list)
    dataset: str = ""
    """What was embedded, in words."""
    identity: str = ""
    """Digest of the weights, the input and how it was read: equal for equal features."""
    logit_scale: float | None = None
    """What the model multiplies its cosines by, without a clamp. None: not known."""
    weights: str = ""
    """Digest of the model's weights (`digest_of_weights`): features of other weights can't be compared with these."""

    def features(self, kind: str) -> Tensor | None:
        return self.image_features if kind == "image" else self.text_features

    def ids(self, kind: str) -> list[str]:
        return self.image_ids if kind == "image" else self.text_ids


def check_ending(path: Path) -> None:
    """Raises UserError for a file that is neither of the two formats."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: a file of features ends in {' or '.join(ENDINGS)}.")


def write_features(path: Path, content: FeatureFile) -> None:
    """Writes and syncs the file, the same bytes for the same content. A file that is there is replaced."""
    check_ending(path)
    about = {
        "format": FORMAT,
        "fingerprint": content.fingerprint,
        "source": content.source,
        "dataset": content.dataset,
        "identity": content.identity,
        "logit_scale": content.logit_scale,
        "weights": content.weights,
    }
    metadata = {METADATA: json.dumps(about, ensure_ascii=False)}
    try:
        if path.suffix == ".parquet":
            _write_parquet(path, content, metadata)
        else:
            save_file(_tensors(content), path, metadata)
            path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_features(path: str | Path) -> FeatureFile:
    """Reads either format into memory. Raises UserError that names the file and what is wrong with it."""
    path = Path(path)
    check_ending(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of features. Write it with `accel-train embed`.")
    read = _read_parquet if path.suffix == ".parquet" else _read_safetensors
    try:
        about, columns = read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, pa.ArrowException) as error:
        raise UserError(f"{path}: can't be read as a file of features ({error}). Write it again.") from error
    content = FeatureFile(
        columns.get("image_features"),
        columns.get("text_features"),
        about["fingerprint"],
        about["source"],
        columns.get("image_ids", []),
        columns.get("text_ids", []),
        about["dataset"],
        about["identity"],
        about["logit_scale"],
        about["weights"],
    )
    _check(path, content)
    return content


def _check(path: Path, content: FeatureFile) -> None:
    lengths = set()
    for kind in KINDS:
        features, ids = content.features(kind), content.ids(kind)
        if features is None:
            continue
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise UserError(f"{path}: {kind}_ids is no list of texts.")
        if features.ndim != 2 or features.dtype != torch.float32 or len(features) != len(ids):
            found = f"{tuple(features.shape)} {features.dtype} with {len(ids)} ids"
            raise UserError(f"{path}: {kind}_features is {found}; it must be (rows, D) in float32, an id for each row.")
        if not _all_finite(features):
            raise UserError(
                f"{path}: {kind}_features holds NaN or infinite values. Embed again with weights that work."
            )
        lengths.add(features.shape[1])
    if len(lengths) != 1:
        found = f"features of lengths {sorted(lengths)}" if lengths else "no features"
        raise UserError(f"{path}: holds {found}; features of one model have one length.")


def _all_finite(features: Tensor) -> bool:
    """By the sums of pieces, finite if every value is and none is huge: the file may be larger than memory."""
    return all(bool(part.sum().isfinite() or part.isfinite().all()) for part in features.split(ROWS_AT_ONCE))


def _tensors(content: FeatureFile) -> dict[str, Tensor]:
    tensors = {}
    for kind in KINDS:
        if (features := content.features(kind)) is not None:
            listed = json.dumps(content.ids(kind), ensure_ascii=False).encode()
            tensors[f"{kind}_features"] = features.contiguous()
            tensors[f"{kind}_ids"] = torch.frombuffer(bytearray(listed), dtype=torch.uint8)
    return tensors


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        about = _about((file.metadata() or {}).get(METADATA))
        columns: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    for kind in KINDS:
        if f"{kind}_features" in columns:
            columns[f"{kind}_ids"] = read_json(columns[f"{kind}_ids"].numpy().tobytes())
    return about, columns


def _write_parquet(path: Path, content: FeatureFile, metadata: dict[str, str]) -> None:
    with pq.ParquetWriter(path, SCHEMA.with_metadata(metadata)) as writer:
        for kind in KINDS:
            features, ids = content.features(kind), content.ids(kind)
            for start in range(0, 0 if features is None else len(features), ROWS_AT_ONCE):
                assert features is not None
                rows = features[start : start + ROWS_AT_ONCE].numpy()
                offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
                lists = pa.ListArray.from_arrays(offsets, rows.reshape(-1))
                columns = [pa.array([kind] * len(rows)), pa.array(ids[start : start + ROWS_AT_ONCE]), lists]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata)))


def _read_parquet(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        table = file.read()
    table.validate(full=True)
    about = _about((table.schema.metadata or {}).get(METADATA.encode()))
    columns: dict[str, Any] = {}
    kinds = table.column("kind").to_numpy()
    for kind in KINDS:
        rows = table.filter(pa.array(kinds == kind))
        if len(rows):
            lists = rows.column("features").combine_chunks()
            values = lists.flatten().to_numpy(zero_copy_only=False)
            if set(lists.value_lengths().unique().to_pylist()) != {len(values) // len(rows)}:
                raise ValueError(f"its {kind} features have different lengths")
            columns[f"{kind}_features"] = torch.from_numpy(np.array(values.reshape(len(rows), -1)))
            columns[f"{kind}_ids"] = rows.column("id").to_pylist()
    return about, columns


def _about(text: str | bytes | None) -> dict[str, Any]:
    if text is None:
        raise ValueError(f"its metadata has no {METADATA!r}")
    about = read_json(text)
    if not isinstance(about, dict):
        raise ValueError(f"its metadata {METADATA!r} is no mapping")
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is {about.get('format')!r}, and this program reads {FORMAT!r}")
    about = {
        "fingerprint": None,
        "source": "",
        "dataset": "",
        "identity": "",
        "logit_scale": None,
        "weights": "",
    } | about
    for key in ("source", "dataset", "identity", "weights"):
        if not isinstance(about[key], str):
            raise ValueError(f"its {key} is no text")
    if not isinstance(about["fingerprint"], str | None) or not isinstance(about["logit_scale"], int | float | None):
        raise ValueError("its fingerprint is no text, or its logit_scale no number")
    return about
