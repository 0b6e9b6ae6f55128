"""One rank's file of a checkpoint, in the safetensors format: written, hashed and sent to disk in one pass."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch
import xxhash
from torch import Tensor

from accel_train.checkpoint.files import BUFFER, WEIGHT, FileRecord, Index
from accel_train.engine.shards import Shard
from accel_train.whereabouts import Whereabouts

CHUNK = 8 * 2**20
"""Bytes that are written at a time."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls them."""


class GivenUp(OSError):
    """Nobody waits any more for what is being written."""


@dataclass(slots=True)
class Pieces:
    """Flattened tensors by their key `kind|parameter|offset`, and where they belong."""

    file_name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    index: Index = field(default_factory=dict)

    def add(self, kind: str, name: str, shape: tuple[int, ...], offset: int, piece: Tensor) -> None:
        self.tensors[f"{kind}|{name}|{offset}"] = piece.detach()
        entry = self.index.setdefault(kind, {}).setdefault(name, {"shape": list(shape), "pieces": []})
        entry["pieces"].append([self.file_name, offset, piece.numel()])


def pieces_of(rank: int, shards: Iterable[Shard], buffers: dict[str, Tensor]) -> Pieces:
    """What a rank's file is to hold. Nothing is copied: the tensors are the engine's own."""
    pieces = Pieces(f"rank_{rank:05d}.safetensors")
    for shard in shards:
        for kind, piece in {WEIGHT: shard.weight, **shard.state}.items():
            pieces.add(kind, shard.name, shard.shape, shard.offset, piece)
    for name, buffer in buffers.items():
        pieces.add(BUFFER, name, tuple(buffer.shape), 0, buffer.reshape(-1))
    # Widest elements first, so that every tensor lies where its elements may.
    pieces.tensors = dict(sorted(pieces.tensors.items(), key=lambda item: -item[1].element_size()))
    return pieces


def write_pieces(
    folder: Path, pieces: Pieces, given_up: Event | None = None, here: Whereabouts | None = None
) -> FileRecord:
    """Writes one rank's file and syncs it to disk. Raises OSError, for example on a full disk."""
    path = folder / pieces.file_name
    digest = xxhash.xxh3_128()
    size = 0
    syncing: Future[None] | None = None
    try:
        with path.open("wb") as file, ThreadPoolExecutor(1) as disk:
            for chunk in _chunks(pieces):
                if given_up is not None and given_up.is_set():
                    raise GivenUp(errno.ECANCELED, "given up")
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if syncing is None or syncing.done():  # the disk works while the next chunks are on their way
                    _raise_failure_of(syncing)
                    syncing = disk.submit(os.fdatasync, file.fileno())
                if here is not None:
                    here.move()
            _raise_failure_of(syncing)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return FileRecord(path.name, size, digest.hexdigest())


def _raise_failure_of(syncing: Future[None] | None) -> None:
    """The system says once that it could not write: another sync of the same file would succeed."""
    if syncing is not None:
        syncing.result()


def _chunks(pieces: Pieces) -> Iterator[bytes | memoryview]:
    """The content of the file; small tensors share a chunk."""
    gathered = bytearray(_header(pieces.tensors))
    for tensor in pieces.tensors.values():
        content = memoryview(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        if len(gathered) + len(content) <= CHUNK:
            gathered += content
            continue
        yield bytes(gathered)
        gathered.clear()
        for start in range(0, len(content), CHUNK):
            yield content[start : start + CHUNK]
    yield bytes(gathered)


def _header(tensors: dict[str, Tensor]) -> bytes:
    """The length of a JSON text, and the text: what lies where behind it."""
    entries, place = {}, 0
    for key, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": DTYPES[tensor.dtype], "shape": [tensor.numel()], "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
