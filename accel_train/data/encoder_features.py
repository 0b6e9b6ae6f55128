"""What frozen encoders give for a split, in one file, as `accel-train embed` writes it for the multimodal tasks.

FOLDER/SPLIT.safetensors    image (num_images, W), audio (num_recordings, W), text (num_texts, W), each fp32 and optional:
                            the vectors that the aligner reads. JSON in the header's metadata, under `accel_train`.

Rows stand in the order of the split's images, recordings and texts.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel_train.data.spoken_split import SpokenSplit
from accel_train.errors import UserError
from accel_train.json_text import read_json

FORMAT = "accel_train encoder features 1"
METADATA = "accel_train"
TABLES = {"image": "images", "audio": "recordings", "text": "texts"}
"""The table of a split whose rows a modality's vectors follow."""


@dataclass(frozen=True, slots=True)
class EncoderFeatures:
    """Vectors of one split by modality."""

    vectors: dict[str, Tensor]
    fingerprint: str
    """The split's."""
    encoders: dict[str, dict[str, Any]]
    """What decides the vectors of each modality: weights, architecture, how inputs are read, precision."""

    @property
    def identity(self) -> str:
        """Equal for vectors of the same encoders."""
        return hashlib.sha256(json.dumps(self.encoders, sort_keys=True).encode()).hexdigest()


def features_path(folder: str, split: str) -> Path:
    return Path(folder) / f"{split}.safetensors"


def write_encoder_features(path: Path, content: EncoderFeatures) -> None:
    about = {"format": FORMAT, "fingerprint": content.fingerprint, "encoders": content.encoders}
    vectors = {kind: vectors.contiguous() for kind, vectors in content.vectors.items()}
    save_file(vectors, path, {METADATA: json.dumps(about)})
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read


def open_encoder_features(folder: str, split: SpokenSplit, kinds: Iterable[str]) -> EncoderFeatures:
    """The vectors of these modalities of a split, in memory. Raises UserError for missing ones and for another split's."""
    path = features_path(folder, split.name)
    about = _about(path, kinds)
    if about["fingerprint"] != split.fingerprint:
        raise UserError(
            f"data.features: {path} holds features of other data than the split {split.name} as it is now. "
            "Write them again with `accel-train embed`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            vectors = {kind: file.get_tensor(kind) for kind in kinds}
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from error
    for kind, found in vectors.items():
        wanted = len(vars(split)[TABLES[kind]])
        if found.ndim != 2 or found.dtype != torch.float32 or len(found) != wanted:
            shape = f"{tuple(found.shape)} {found.dtype}"
            raise _unreadable(path, f"{kind} is {shape}; it must be ({wanted}, width) in float32")
        if not found.isfinite().all():
            raise _unreadable(path, f"{kind} holds NaN or infinite values")
    return EncoderFeatures(vectors, about["fingerprint"], {kind: about["encoders"][kind] for kind in kinds})


def stored_encoders(folder: str, split: str, kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`EncoderFeatures.encoders` without reading the vectors. Raises UserError."""
    encoders: dict[str, dict[str, Any]] = _about(features_path(folder, split), kinds)["encoders"]
    return encoders


def vector_width(folder: str, split: str, kind: str) -> int:
    """Length of a modality's vectors. Raises UserError."""
    path = features_path(folder, split)
    _about(path, [kind])
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice(kind).get_shape()[1])


def _about(path: Path, wanted: Iterable[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"data.features: there is no {path}. Write it with `accel-train embed CONFIG {path} --split {path.stem}`, or "
            "set data.features to null."
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = read_json((file.metadata() or {}).get(METADATA, "null"))
            kinds = set(file.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or set(about["encoders"]) != kinds:
        raise _unreadable(path, f"it is no file of the format {FORMAT!r}")
    if missing := [kind for kind in wanted if kind not in kinds]:
        raise _unreadable(path, f"it holds no features of the modality {missing[0]}, but of {', '.join(sorted(kinds))}")
    return about


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"data.features: {path} can't be used: {why}. Write it again with `accel-train embed`.")
