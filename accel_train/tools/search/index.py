"""An index on disk that follows what it is of: new and changed items are embedded, removed ones vanish, others stay."""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from accel_train.checkpoint.files import write_json
from accel_train.data.loader import Request
from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.run_lock import RunLock
from accel_train.tools.embed import features_of, replies_for
from accel_train.tools.feature_blocks import about_work, cut_into_blocks, identity_of, on_disk
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.search.collection import Collection
from accel_train.tools.search.encoder import Encoder
from accel_train.tools.search.segments import Segment, Segments

ABOUT = "index.json"
ROWS_AT_ONCE = 65536
FORMAT = 1
DECIDES = {"image": ("weights", "model", "images", "precision"), "text": ("weights", "model", "texts", "precision")}
"""What a feature depends on, of all that `about_work` names."""

Key = tuple[str, str]
"""Id and stamp of an item."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """The items of a collection that can be searched."""

    rows: Sequence[int]
    """Row of the collection for each feature, rising."""
    features: Tensor
    """(n, D) fp32, L2-normalised."""
    token: str
    """Another one for other features."""
    num_embedded: int = 0
    num_kept: int = 0
    num_removed: int = 0
    unreadable: tuple[str, ...] = ()
    """Items that were left out, each with the reason."""


def default_folder(location: str) -> Path:
    """Where the index of a source lies if no folder is given: in the user's cache, under a name of its own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.-]+", "_", Path(location).name)[-40:]
    digest = hashlib.sha256(location.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return cache / "accel_train" / "search" / f"{name}-{digest}"


@contextmanager
def held(folder: Path, location: str) -> Iterator[None]:
    """Makes the folder if it is not there, or checks that it is an index of `location`, and keeps other commands away.

    Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, location)
        lock = RunLock(
            folder / "lock", what=f"{folder}: another command is using this index", say=partial(print, file=sys.stderr)
        )
    except OSError as error:
        raise UserError(f"{folder}: the index can't be kept there ({error}). Choose a folder with --index.") from error
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: the index can't be written ({error}). What is done is kept.") from error
    finally:
        lock.release()


def _claim(folder: Path, location: str) -> None:
    path, about = folder / ABOUT, {"format": FORMAT, "searched": location}
    if not path.exists():
        if others := [entry.name for entry in folder.iterdir() if entry.name != f"{ABOUT}.partial"]:
            raise UserError(f"{folder} is no index; it holds {min(others)!r}. Choose an empty or a new folder.")
        aside = path.with_name(f"{ABOUT}.partial")
        write_json(aside, about)
        aside.replace(path)
        return
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Remove {folder} to make the index again.") from error
    if found != about:
        of = found.get("searched") if isinstance(found, dict) else None
        raise UserError(f"{folder} is an index of {of}, not of {location}. Choose another folder, or remove this one.")


def update(folder: Path, collection: Collection, encoder: Encoder, *, show_progress: bool) -> Indexed:
    """Brings the index of a collection up to date and returns what can be searched. The folder is `held`.

    Raises UserError if nothing can be read, and for a model that gives NaN.
    """
    about = about_work(encoder.config, encoder.model, {}, encoder.batch_size)
    identity = identity_of({name: about[name] for name in DECIDES[collection.kind]})
    segments = Segments(folder, collection.kind, identity)
    known = segments.usable()
    keys: list[Key] = list(zip(collection.ids, collection.stamps, strict=True))
    there = {key for _, segment in known for key in zip(segment.ids, segment.stamps, strict=True)}
    there |= {(id_, stamp) for _, segment in known for id_, stamp, _ in segment.unreadable}
    missing = [row for row, key in enumerate(keys) if key not in there]
    _embed(segments, collection, missing, encoder, show_progress=show_progress)

    whole, path = _joined(folder, keys, segments.usable() if missing else known)
    if path is None:
        path = segments.append(whole)
        whole.features = torch.empty(0, 0)  # the joined ones make room for those of the file
        written = segments.read(path)
        assert written is not None
        whole = written
    segments.remove_all_but(path)
    if not whole.ids:
        raise UserError(f"{collection.name}: none of the {len(keys)} can be read, the first: {whole.unreadable[0][2]}.")
    row_of = {id_: row for row, id_ in enumerate(collection.ids)}
    before = {id_ for _, segment in known for id_ in segment.ids}
    return Indexed(
        rows=[row_of[id_] for id_ in whole.ids],
        features=whole.features,
        token=whole.token,
        num_embedded=sum(key not in there for key in zip(whole.ids, whole.stamps, strict=True)),
        num_kept=sum(key in there for key in zip(whole.ids, whole.stamps, strict=True)),
        num_removed=len(before - row_of.keys()),
        unreadable=tuple(reason for _, _, reason in whole.unreadable),
    )


def _embed(
    segments: Segments, collection: Collection, missing: list[int], encoder: Encoder, *, show_progress: bool
) -> None:
    """Writes a segment for each block of rows that are missing."""
    if not missing:
        return
    blocks = cut_into_blocks(collection.kind, len(missing), encoder.batch_size)
    requests = [
        Request(tuple(missing[place] for place in batch), None) for block in blocks for batch in block.batches()
    ]
    replies = replies_for(collection.dataset(), requests, encoder.config)
    done = len(collection.ids) - len(missing)
    with RowProgress(f"{collection.kind}s", len(collection.ids), done=done, shown=show_progress) as progress:
        for block in blocks:
            segment = Segment([], [], torch.empty(0, 0))
            pieces = []
            for batch in block.batches():
                reply = next(replies)
                read = reply.columns["sample_id"].tolist() if reply.columns else []
                segment.ids += [collection.ids[row] for row in read]
                segment.stamps += [collection.stamps[row] for row in read]
                others = sorted(
                    {missing[place] for place in batch} - set(read)
                )  # in the order of reading, as the reasons
                segment.unreadable += [
                    (collection.ids[row], collection.stamps[row], reason)
                    for row, reason in zip(others, reply.unreadable, strict=True)
                ]
                if read:
                    pieces.append(features_of(encoder.engine, collection.kind, reply.columns, encoder.batch_size))
                progress.advance(len(batch))
            segment.features = torch.cat(pieces) if pieces else segment.features
            if not segment.features.isfinite().all():
                raise UserError(f"{encoder.source}: gives NaN or infinite features. Search with weights that work.")
            segments.append(segment)


def _joined(folder: Path, keys: list[Key], every: list[tuple[Path, Segment]]) -> tuple[Segment, Path | None]:
    """The items that there are, in the collection's order, and the file if one segment is just that."""
    place: dict[Key, tuple[int, int]] = {}
    reasons: dict[Key, str] = {}
    for number, (_, segment) in enumerate(every):
        place |= {key: (number, row) for row, key in enumerate(zip(segment.ids, segment.stamps, strict=True))}
        reasons |= {(id_, stamp): reason for id_, stamp, reason in segment.unreadable}
    found = [key for key in keys if key in place]
    unreadable = [(*key, reasons[key]) for key in keys if key in reasons and key not in place]
    if len(every) == 1:
        path, only = every[0]
        if list(zip(only.ids, only.stamps, strict=True)) == found and only.unreadable == unreadable:
            return only, path
    width = max((segment.features.shape[1] for _, segment in every), default=0)
    features = on_disk(folder, len(found), width)
    numbers = torch.tensor([place[key] for key in found], dtype=torch.int64).reshape(-1, 2)
    for number, (_, segment) in enumerate(every):
        for rows in (numbers[:, 0] == number).nonzero()[:, 0].split(ROWS_AT_ONCE):
            features[rows] = segment.features[numbers[rows, 1]]
    return Segment([key[0] for key in found], [key[1] for key in found], features, unreadable), None
