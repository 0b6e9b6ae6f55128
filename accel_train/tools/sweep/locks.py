"""Locks of a sweep folder. The kernel drops them with the process that holds them, so none outlives a kill."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from accel_train.errors import UserError


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """Holds a lock, and waits for it as long as another process has it."""
    with path.open("a+b") as file:
        _flock(file, path, fcntl.LOCK_EX)
        yield file  # closing the file drops the lock


class Claim:
    """A trial's folder, taken by one worker. The lock passes on to the trial's process, which may outlive the worker."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @property
    def descriptor(self) -> int:
        """To be left open in the trial's process."""
        return self._file.fileno()

    def release(self) -> None:
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def claim(path: Path) -> Claim | None:
    """Takes a lock, or None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    try:
        _flock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
    file.flush()
    return Claim(file)


def holder_is_dead(path: Path) -> bool:
    """Whether the worker that took this lock was one of this machine and is no more. Its trial may still be saving."""
    try:
        host, pid = path.read_text(encoding="utf-8").split()
        if host != socket.gethostname():
            return False
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _flock(file: BinaryIO, path: Path, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"sweep_dir: {path.parent} lies on a file system without locks, on which workers can't tell whose trial is "
            "whose. Choose a folder on another one (Lustre: mounted with -o flock)."
        ) from error
