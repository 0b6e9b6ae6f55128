"""The folders of a run's checkpoints, on disks and on file systems that can do less than a disk."""

import errno
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accel_train.checkpoint import files
from accel_train.checkpoint.files import DamagedCheckpoint

VISIBLE_WITHIN = 20.0
"""Seconds after which what one host has written on a network file system is seen by the others, or something is wrong."""
LOOK_EVERY = 0.1
CAN_NOT_RENAME = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that can't rename a folder."""
CAN_NOT_LINK = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def all_folders(root: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    return sorted(root.glob("step_" + "[0-9]" * 8), reverse=True)


def move(source: Path, target: Path) -> None:
    """Gives a folder another name, at once where the file system can do that.

    Else file by file and state.json last: until that is there, `target` does not count as whole, and `source` has not been
    since the first file left it.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in CAN_NOT_RENAME:
            raise
        target.mkdir(exist_ok=True)
        for path in sorted(source.iterdir(), key=lambda path: path.name == files.STATE_FILE):
            path.replace(target / path.name)
        files.sync(target)
        source.rmdir()


def point(link: Path, folder: Path) -> None:
    """Makes `latest` or `best` point at a checkpoint, in one step. Where links are refused it is a file with the name."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.symlink(folder.name, fresh)
    except OSError as error:
        if error.errno not in CAN_NOT_LINK:
            raise
        fresh.write_text(folder.name + "\n", encoding="utf-8")
    fresh.replace(link)


def pointed_at(link: Path) -> Path | None:
    """The checkpoint that `latest`, `best` or its own name means, or None if there is none."""
    if not link.is_file():
        return link.resolve() if link.is_dir() else None
    named = link.read_text(encoding="utf-8").strip()
    return next((folder for folder in all_folders(link.parent) if folder.name == named), None)


def link(root: Path, *, newest: int, best: int | None) -> None:
    """Sets `latest` and `best` to these steps; `best` only if its checkpoint is there."""
    point(root / "latest", root / folder_name(newest))
    if best is not None and (root / folder_name(best)).is_dir():
        point(root / "best", root / folder_name(best))


def prune(root: Path, *, keep_last: int | None) -> list[Path]:
    """What a kill left half done, and all checkpoints but the best and the last ones; None keeps them all.

    None of them counts as a checkpoint any more. `erase` is to remove them, which takes a while: a large file's memory and
    blocks are freed one by one.
    """
    doomed = list(root.glob(".step_*"))
    kept = pointed_at(root / "best")
    for folder in all_folders(root)[keep_last:] if keep_last is not None else []:
        if kept is None or folder.name != kept.name:
            doomed.append(_doom(folder))
    return doomed


def erase(doomed: Iterable[Path]) -> None:
    """Removes folders that never were a checkpoint, or are none any more."""
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partial(root: Path) -> None:
    """Removes folders that never were a checkpoint."""
    erase(root.glob(".step_*.partial"))


def remove(folder: Path) -> None:
    """Removes a checkpoint."""
    erase([_doom(folder)])


def _doom(folder: Path) -> Path:
    """Renames a checkpoint, so that a kill in the middle of its removal leaves none that looks whole."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    erase([doomed])
    move(folder, doomed)
    return doomed


def set_aside(damaged: Path) -> None:
    """Keeps a damaged checkpoint under a name that does not count."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    move(damaged, aside)


def wait_for_folder(folder: Path) -> None:
    """Returns when a folder that another rank made is seen here, or after VISIBLE_WITHIN: opening it says what is wrong."""
    limit = time.monotonic() + VISIBLE_WITHIN
    while not folder.is_dir() and time.monotonic() < limit:
        _look_again(folder.parent)


def wait_until_whole(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint that another rank has seen whole. Raises DamagedCheckpoint if it isn't so here."""
    limit = time.monotonic() + VISIBLE_WITHIN
    while True:
        try:
            state = files.read_state(folder)
            files.check_sizes(folder, state)
            return state
        except DamagedCheckpoint:
            if time.monotonic() >= limit:
                raise
            _look_again(folder)


def _look_again(folder: Path) -> None:
    """Listing a folder makes a network file system ask its server what is in it, instead of its own memory."""
    time.sleep(LOOK_EVERY)
    for place in (folder.parent, folder):
        if place.is_dir():
            os.listdir(place)
