"""Features while they are computed: a folder with one file for each block of rows, so that a kill loses one block at most.

A block is a function of the number of rows and the batch size, never of ranks, and its batches are always the same ones.
So whichever rank computes a block, and whenever, its file is the same.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from accel_train.checkpoint.files import sync, write_json
from accel_train.config.contrastive import ContrastiveConfig
from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.models.weights_digest import digest_of_weights

ABOUT = "about.json"
MAX_BLOCKS = 1024
"""So many files at most for each kind, however many rows there are."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of the images or of the texts, in batches."""

    kind: str
    start: int
    stop: int
    batch_size: int

    @property
    def file_name(self) -> str:
        return f"{self.kind}_{self.start:012d}.safetensors"

    def batches(self) -> list[range]:
        starts = range(self.start, self.stop, self.batch_size)
        return [range(start, min(start + self.batch_size, self.stop)) for start in starts]


def cut_into_blocks(kind: str, num_rows: int, batch_size: int) -> list[Block]:
    """Blocks of whole batches, equally many in each, in row order."""
    num_batches = -(-num_rows // batch_size)
    rows = -(-num_batches // MAX_BLOCKS) * batch_size
    return [Block(kind, start, min(start + rows, num_rows), batch_size) for start in range(0, num_rows, rows)]


@dataclass(slots=True)
class Part:
    """What became of one block."""

    rows: Tensor
    """(n,) int64, the rows that could be read."""
    features: Tensor
    """(n, D) fp32; (0, 0) where none could."""
    unreadable: list[str]


class Parts:
    """The folder. Files in it are complete or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, about: dict[str, Any]) -> None:
        """Makes the folder for this work, or checks that what it holds belongs to it. Raises UserError."""
        path = self.folder / ABOUT
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            aside = path.with_suffix(".partial")
            write_json(aside, about)
            aside.replace(path)
            sync(self.folder)
            return
        try:
            found = read_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}). Remove {self.folder} to start afresh.") from error
        if found != about:
            differing = [name for name in about if not isinstance(found, dict) or found.get(name) != about[name]]
            raise UserError(
                f"{self.folder} holds unfinished features of other work; different: {', '.join(differing)}. Repeat the "
                "command that was interrupted, remove this folder, or choose another output."
            )

    def missing(self, blocks: list[Block]) -> list[Block]:
        return [block for block in blocks if not (self.folder / block.file_name).exists()]

    def write(self, block: Block, part: Part) -> None:
        path = self.folder / block.file_name
        aside = path.with_suffix(".partial")
        content = {"rows": part.rows, "features": part.features.contiguous()}
        save_file(content, aside, {"unreadable": json.dumps(part.unreadable, ensure_ascii=False)})
        sync(aside)
        aside.replace(path)
        sync(self.folder)

    def read(self, blocks: list[Block]) -> Iterator[Part]:
        for block in blocks:
            with safe_open(self.folder / block.file_name, framework="pt") as file:
                unreadable = read_json(file.metadata()["unreadable"])
                yield Part(file.get_tensor("rows"), file.get_tensor("features"), unreadable)

    def unreadable(self, blocks: list[Block]) -> list[str]:
        """Rows that the finished ones of these blocks left out, in words."""
        missing = set(self.missing(blocks))
        return [line for part in self.read([b for b in blocks if b not in missing]) for line in part.unreadable]

    def join(self, blocks: list[Block]) -> tuple[Tensor, Tensor]:
        """All rows that could be read, (n,), and their features, (n, D), `on_disk`. Raises UserError for none."""
        rows, width = [], 0
        for part in self.read(blocks):
            rows.append(part.rows)
            width = width or part.features.shape[1]
        joined = torch.cat(rows)
        if len(joined) == 0:
            raise UserError(f"none of the {blocks[0].kind} inputs can be read, so there are no features to write.")
        features, place = on_disk(self.folder, len(joined), width), 0
        for part in self.read(blocks):
            features[place : place + len(part.rows)] = part.features.reshape(-1, width)
            place += len(part.rows)
        return joined, features


def on_disk(folder: Path, num_rows: int, width: int) -> Tensor:
    """An empty tensor (num_rows, width) fp32 in a file of the folder without a name, gone with the tensor.

    The system writes out what memory has no room for, so features of millions of rows fit anywhere. Raises OSError for a
    disk that can't hold it.
    """
    num_bytes = num_rows * width * 4
    if num_bytes == 0:
        return torch.empty(num_rows, width)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # else a full disk would kill the process when it writes
        return torch.from_file(file.name, shared=True, size=num_rows * width).view(num_rows, width)


def about_work(config: ContrastiveConfig, model: nn.Module, inputs: dict[str, str], batch_size: int) -> dict[str, Any]:
    """What decides the features: weights, model, how inputs are read, and `inputs`, a fingerprint for each kind."""
    data = config.data
    return {
        "weights": digest_of_weights(model),
        "model": config.model.model_dump(mode="json"),
        "images": [data.image_size, data.resize, data.decoding, list(data.image_mean), list(data.image_std)],
        "texts": [data.tokenizer, data.max_text_length, data.text_cleaning],
        "precision": config.precision,
        "batch size": batch_size,
        "input": inputs,
    }


def identity_of(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def remove(folder: Path) -> None:
    """Removes the files of the folder, the one that says whose they are last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == ABOUT):
        path.unlink()
    os.rmdir(folder)
