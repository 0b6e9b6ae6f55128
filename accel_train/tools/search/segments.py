"""Files of an index: each holds the features of some items, is complete or absent, and says by itself what it is.

A segment never changes. New items get a new one; when all is there, one takes the place of the others. So a kill loses the
segment that was being written, and whatever is left is of use to the next run.
"""

import json
import re
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel_train.checkpoint.files import sync
from accel_train.json_text import read_json

FORMAT = "accel_train search index 1"
METADATA = "accel_train"
NAME = re.compile(r"(image|text)_(\d{8})\.safetensors")


@dataclass(slots=True)
class Segment:
    """Items with their features, and items that can't be read, so that they are not tried again at each start."""

    ids: list[str]
    stamps: list[str]
    features: Tensor
    """(n, D) fp32, L2-normalised; (0, 0) without items."""
    unreadable: list[tuple[str, str, str]] = field(default_factory=list)
    """Id, stamp and what is wrong."""
    token: str = ""
    """Another one for each segment that is written."""


class Segments:
    """The segments of one kind in a folder. `identity` is of the model: those of another one are of no use."""

    def __init__(self, folder: Path, kind: str, identity: str) -> None:
        self.folder, self.kind, self.identity = folder, kind, identity

    def paths(self) -> list[Path]:
        """All files of segments, oldest first, also those of other models."""
        numbered = ((NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [path for _, path in sorted((int(m[2]), path) for m, path in numbered if m and m[1] == self.kind)]

    def usable(self) -> list[tuple[Path, Segment]]:
        """Those of this model, oldest first. A damaged file costs computing it again; it is named and removed."""
        found = []
        for path in self.paths():
            try:
                segment = self.read(path)
            except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
                print(f"{path}: damaged ({error}), so it is removed and its items are embedded again", file=sys.stderr)
                path.unlink()
            else:
                found += [] if segment is None else [(path, segment)]
        return found

    def append(self, segment: Segment) -> Path:
        """Writes a segment; it is on disk when this returns."""
        paths = self.paths()
        found = NAME.fullmatch(paths[-1].name) if paths else None
        path = self.folder / f"{self.kind}_{int(found[2]) + 1 if found else 1:08d}.safetensors"
        items = {"ids": segment.ids, "stamps": segment.stamps, "unreadable": segment.unreadable}
        encoded = torch.frombuffer(bytearray(json.dumps(items).encode()), dtype=torch.uint8)
        segment.token = secrets.token_hex(16)
        about = {"format": FORMAT, "identity": self.identity, "token": segment.token}
        aside = path.with_suffix(".partial")
        save_file({"features": segment.features.contiguous(), "items": encoded}, aside, {METADATA: json.dumps(about)})
        aside.chmod(self.folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        sync(aside)
        aside.replace(path)
        sync(self.folder)
        return path

    def remove_all_but(self, kept: Path) -> None:
        """Removes the other segments and what a kill left half written."""
        for path in [*self.paths(), *self.folder.glob("*.partial")]:
            if path != kept:
                with suppress(FileNotFoundError):
                    path.unlink()

    def read(self, path: Path) -> Segment | None:
        """None: of another model. The features stay on disk until they are used (memory-mapped).

        Raises OSError, SafetensorError, LookupError, TypeError or ValueError for a file that is not a whole segment.
        """
        with safe_open(path, framework="pt") as file:
            about = read_json((file.metadata() or {})[METADATA])
            if about["format"] != FORMAT or about["identity"] != self.identity:
                return None
            items = read_json(file.get_tensor("items").numpy().tobytes())
            unreadable = [(id_, stamp, reason) for id_, stamp, reason in items["unreadable"]]
            segment = Segment(items["ids"], items["stamps"], file.get_tensor("features"), unreadable, about["token"])
        if not len(segment.ids) == len(segment.stamps) == len(segment.features):
            raise ValueError(f"{len(segment.ids)} ids for {len(segment.features)} features")
        return segment
