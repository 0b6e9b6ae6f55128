"""Whether a result can be left where it was asked for: asked before the work that it comes from, not after."""

import os
from collections.abc import Sequence
from pathlib import Path

from accel_train.errors import UserError


def check_writable(target: Path, what: str, *, makes_folders: bool = False) -> None:
    """Raises UserError if no file or folder could be made at `target`, which need not be there yet.

    `what` is the option or argument that named it. With `makes_folders` the folders above it may be missing too.
    """
    folder = target.absolute().parent
    while makes_folders and not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        problem = f"{folder} is {'not a folder' if os.path.lexists(folder) else 'not there'}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = f"{folder} can't be written"
    elif target.is_dir() and not makes_folders:
        problem = "it is a folder"
    else:
        return
    raise UserError(f"{what}: found {target}, but {problem}. Name another place.")


def check_result_file(file: Path, what: str, endings: Sequence[str]) -> None:
    """Raises UserError if a file of one of these kinds could not be written. Arguments as in `check_writable`."""
    if file.suffix not in endings or not file.parent.is_dir():
        raise UserError(f"{what}: {file} must end in {' or '.join(endings)} and lie in a folder that exists.")
    check_writable(file, what)
