"""The checkpoint format: one folder for every engine and any number of ranks.

    rank_00000.safetensors   what that rank owned: pieces of flattened tensors, keyed `kind|parameter|offset`
    index.json               for every kind (weight, exp_avg, ...) and parameter: its shape and where its pieces are
    state.json               the training state, the configuration, and size and SHA-256 of every other file

A piece is a contiguous range of the flattened parameter, so any number of ranks under any engine can read what any other
wrote. Nothing here is pickled.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel_train.engine.shards import Shard
from accel_train.json_text import read_json

FORMAT = 1
STATE_FILE = "state.json"
INDEX_FILE = "index.json"
WEIGHT = "weight"
BUFFER = "buffer"

Index = dict[str, dict[str, dict[str, Any]]]
"""kind -> parameter -> {"shape": [...], "pieces": [[file, offset, length], ...]}"""


class DamagedCheckpoint(Exception):
    """A file is missing, torn or changed; the message names it."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    name: str
    num_bytes: int
    sha256: str


def write_pieces(
    folder: Path, rank: int, shards: Iterable[Shard], buffers: dict[str, Tensor]
) -> tuple[FileRecord, Index]:
    """Writes one rank's file and syncs it to disk. Raises OSError, for example on a full disk."""
    file_name = f"rank_{rank:05d}.safetensors"
    tensors: dict[str, Tensor] = {}
    index: Index = {}

    def add(kind: str, name: str, shape: tuple[int, ...], offset: int, piece: Tensor) -> None:
        tensors[f"{kind}|{name}|{offset}"] = piece.detach().to("cpu", copy=True)
        entry = index.setdefault(kind, {}).setdefault(name, {"shape": list(shape), "pieces": []})
        entry["pieces"].append([file_name, offset, piece.numel()])

    for shard in shards:
        for kind, piece in {WEIGHT: shard.weight, **shard.state}.items():
            add(kind, shard.name, shard.shape, shard.offset, piece)
    for name, buffer in buffers.items():
        add(BUFFER, name, tuple(buffer.shape), 0, buffer.reshape(-1))
    path = folder / file_name
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
    sync(path)
    return record_of(path), index


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes and syncs a small readable file."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.name, path.stat().st_size, digest)


def joined_index(parts: Iterable[Index]) -> Index:
    """The ranks' indexes as one."""
    whole: Index = {}
    for part in parts:
        for kind, parameters in part.items():
            for name, entry in parameters.items():
                known = whole.setdefault(kind, {}).setdefault(name, {"shape": entry["shape"], "pieces": []})
                known["pieces"] += entry["pieces"]
    return whole


def read_state(folder: Path) -> dict[str, Any]:
    """state.json. Raises DamagedCheckpoint."""
    try:
        state = read_json((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder / STATE_FILE}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{folder / STATE_FILE}: not a checkpoint of format {FORMAT}")
    return state


def check_files(folder: Path, state: dict[str, Any], share: slice = slice(None)) -> None:
    """Compares size and hash of the named files with the record; `share` is this rank's part of the work."""
    for record in state["files"][share]:
        path = folder / record["name"]
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        if path.stat().st_size != record["num_bytes"]:
            raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes instead of {record['num_bytes']}")
        if record_of(path).sha256 != record["sha256"]:
            raise DamagedCheckpoint(f"{path} was changed after it was written: its SHA-256 differs")


class Reader:
    """Reads any range of any tensor of a checkpoint, opening each file once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Index = read_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self._open: dict[str, Any] = {}

    def shape(self, kind: str, name: str) -> tuple[int, ...] | None:
        entry = self.index.get(kind, {}).get(name)
        return None if entry is None else tuple(entry["shape"])

    def read_into(self, target: Tensor, kind: str, name: str, offset: int) -> None:
        """Fills a flat view with elements offset .. offset + len(target) of the flattened tensor."""
        end = offset + target.numel()
        filled = 0
        for file_name, start, length in self.index[kind][name]["pieces"]:
            first, last = max(offset, start), min(end, start + length)
            if first < last:
                piece = self._file(file_name).get_slice(f"{kind}|{name}|{start}")[first - start : last - start]
                target[first - offset : last - offset].copy_(piece)
                filled += last - first
        if filled != target.numel():
            raise DamagedCheckpoint(f"{self.folder}: {kind} of {name} is not complete")

    def read(self, kind: str, name: str) -> Tensor:
        """A whole tensor on the CPU, in the dtype it was saved in."""
        entry = self.index[kind][name]
        file_name, start, _ = entry["pieces"][0]
        dtype = self._file(file_name).get_tensor(f"{kind}|{name}|{start}").dtype
        whole = torch.empty(_num_elements(entry["shape"]), dtype=dtype)
        self.read_into(whole, kind, name, 0)
        return whole.view(entry["shape"])

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]


def _num_elements(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
