"""Locks of a sweep folder. The kernel drops them with the process that holds them, so none outlives a kill."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from accel_train.errors import UserError

WORKER, PROCESS = "sweep_worker.lock", "sweep_process.lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock, and waits for it as long as another process has it."""
    with path.open("ab") as file:
        _flock(file, path, fcntl.LOCK_EX)
        yield  # closing the file drops the lock


def try_lock(path: Path) -> BinaryIO | None:
    """Holds a lock until the file is closed; None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        _flock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


class Claim:
    """A trial's folder, taken by one worker, in two locks.

    One ends with the worker, so that the next one sees that the trial was left behind. The other passes on to the trial's
    process, which may outlive the worker: as long as it is held, the trial must not be started a second time.
    """

    def __init__(self, worker: BinaryIO, process: BinaryIO) -> None:
        self._worker, self._process = worker, process

    @property
    def for_process(self) -> int:
        """The descriptor that is to stay open in the trial's process."""
        return self._process.fileno()

    def release(self) -> None:
        fcntl.flock(self._process, fcntl.LOCK_UN)
        self._process.close()
        self._worker.close()


def _flock(file: BinaryIO, path: Path, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"sweep_dir: {path.parent} lies on a file system without locks, on which workers can't tell whose trial is "
            "whose. Choose a folder on another one (Lustre: mounted with -o flock)."
        ) from error
