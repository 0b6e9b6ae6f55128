"""The checkpoint format: one folder for every engine and any number of ranks.

    rank_00000.safetensors   what that rank owned: pieces of flattened tensors, keyed `kind|parameter|offset`
    index.json               for every kind (weight, exp_avg, ...) and parameter: its shape and where its pieces are
    state.json               the training state, the configuration, size and XXH3 of every other file, and its own SHA-256

A piece is a contiguous range of the flattened parameter, so any number of ranks under any engine can read what any other
wrote. Nothing here is pickled.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from accel_train.errors import UserError
from accel_train.json_text import read_json

FORMAT = 3
STATE_FILE = "state.json"
INDEX_FILE = "index.json"
SEAL = "sha256"
"""The last key of state.json: the digest of all the others. It finds damage; it does not say who wrote them."""
WEIGHT = "weight"
BUFFER = "buffer"

Index = dict[str, dict[str, dict[str, Any]]]
"""kind -> parameter -> {"shape": [...], "pieces": [[file, offset, length], ...]}"""


class DamagedCheckpoint(UserError):
    """A file is missing, torn or changed; the message names it."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    name: str
    num_bytes: int
    xxh3: str
    """Of 128 bits: it finds damage as well as SHA-256 does, and costs no time beside writing."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes and syncs a small readable file."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_state(folder: Path, content: dict[str, Any]) -> None:
    """Writes and syncs state.json with the digest of its content."""
    write_json(folder / STATE_FILE, {**content, SEAL: _digest(content)})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk. Some network file systems can't do the latter and keep names safe
    themselves."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise
    finally:
        os.close(descriptor)


def record_of(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
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
    """state.json without its digest. Raises DamagedCheckpoint."""
    path = folder / STATE_FILE
    try:
        state = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{path}: not a checkpoint of format {FORMAT}")
    if state.pop(SEAL, None) != _digest(state):
        raise DamagedCheckpoint(f"{path} was changed after it was written: its SHA-256 differs")
    if not isinstance(state.get("step"), int) or not _names_files(state.get("files")):
        raise DamagedCheckpoint(f"{path}: it lacks the step, or the list of the files beside it")
    return state


def _names_files(records: Any) -> bool:
    """Whether these are records of files in the checkpoint's own folder, the index among them."""
    fields = {"name": str, "num_bytes": int, "xxh3": str}
    return (
        isinstance(records, list)
        and all(isinstance(record, dict) for record in records)
        and all(isinstance(record.get(key), kind) for record in records for key, kind in fields.items())
        and all(_is_plain(record["name"]) for record in records)
        and INDEX_FILE in [record["name"] for record in records]
    )


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


def check_files(folder: Path, state: dict[str, Any], share: slice = slice(None)) -> None:
    """Compares size and hash of the named files with the record; `share` is this rank's part of the work."""
    check_sizes(folder, state, share)
    for record in state["files"][share]:
        path = folder / record["name"]
        if record_of(path).xxh3 != record["xxh3"]:
            raise DamagedCheckpoint(f"{path} was changed after it was written: its XXH3 differs")


def check_sizes(folder: Path, state: dict[str, Any], share: slice = slice(None)) -> None:
    """Looks whether the named files are there with their sizes, without reading them."""
    for record in state["files"][share]:
        path = folder / record["name"]
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        if path.stat().st_size != record["num_bytes"]:
            raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes instead of {record['num_bytes']}")


class Reader:
    """Reads any range of any tensor of a checkpoint, opening each file once. Every method may raise DamagedCheckpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index: Index = read_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
            entries = [entry for parameters in self.index.values() for entry in parameters.values()]
            sound = all(_is_sound(entry) for entry in entries)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedCheckpoint(f"{folder / INDEX_FILE}: {error!r}") from error
        if not sound:
            raise DamagedCheckpoint(f"{folder / INDEX_FILE}: not an index of pieces in this folder")
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
                target[first - offset : last - offset].copy_(
                    self._piece(file_name, f"{kind}|{name}|{start}", slice(first - start, last - start))
                )
                filled += last - first
        if filled != target.numel():
            raise DamagedCheckpoint(f"{self.folder}: {kind} of {name} is not complete")

    def read(self, kind: str, name: str) -> Tensor:
        """A whole tensor on the CPU, in the dtype it was saved in."""
        entry = self.index[kind][name]
        size, place = math.prod(entry["shape"]), 0
        for _, start, length in sorted(entry["pieces"], key=lambda piece: (piece[1], piece[2])):
            place = place + length if start == place else -1
        if place != size or not entry["pieces"]:  # before memory is asked for
            raise DamagedCheckpoint(f"{self.folder}: {kind} of {name} is not complete")
        file_name, start, length = entry["pieces"][0]
        dtype = self._piece(file_name, f"{kind}|{name}|{start}", slice(0, length)).dtype
        whole = torch.empty(size, dtype=dtype)
        self.read_into(whole, kind, name, 0)
        return whole.view(entry["shape"])

    def _piece(self, file_name: str, key: str, part: slice) -> Tensor:
        try:
            if file_name not in self._open:
                self._open[file_name] = safe_open(self.folder / file_name, framework="pt")
            piece: Tensor = self._open[file_name].get_slice(key)[part]
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{self.folder / file_name}: {error}") from error
        if piece.shape != (part.stop - part.start,):
            raise DamagedCheckpoint(f"{self.folder / file_name}: {key} is shorter than {INDEX_FILE} says")
        return piece


def _is_sound(entry: dict[str, Any]) -> bool:
    """Whether an entry of the index holds sizes, and pieces of files in the checkpoint's own folder."""
    sizes = [*entry["shape"], *(size for _, *piece in entry["pieces"] for size in piece)]
    names = [name for name, _, _ in entry["pieces"]]
    return all(type(size) is int and size >= 0 for size in sizes) and all(_is_plain(name) for name in names)
