"""A folder belongs to one process at a time, on whichever host, and a crash does not leave it locked.

The lock file names its owner. An advisory lock on it settles most cases at once: the kernel ends it with the process. Where
the file system has none, or the owner is on another host, whose lock may be invisible here or may outlive that host, the
owner's heartbeat decides: it touches the file every BEAT_SECONDS. A watcher counts changes by its own clock, so clocks of
hosts need not agree.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from accel_train.errors import NotNow
from accel_train.json_text import read_json

BEAT_SECONDS = 5.0
STALE_AFTER = 120.0
"""Seconds without a heartbeat after which an owner on another host is taken for dead."""
LOOK_EVERY = 1.0
RECORD_BYTES = 1024
"""Always so many, so that a record is replaced by one write."""
NUMBERS = ("pid", "slurm_restarts")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, as another one can recognise it."""

    host: str
    boot: str
    """The running kernel: two hosts of one name differ in it, and so does a host before and after a restart."""
    pid: int
    pid_space: str
    """The container, if any, in which `pid` means something."""
    pid_started: str
    """Tells a process from a later one with its number."""
    since: str
    slurm_job: str
    slurm_restarts: int
    token: str
    """Different for each lock that is taken."""

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def this_process() -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        pid=os.getpid(),
        pid_space=_link("/proc/self/ns/pid"),
        pid_started=_start_of(os.getpid()),
        since=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        slurm_job=os.environ.get("SLURM_JOB_ID", ""),
        slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        token=secrets.token_hex(8),
    )


class RunLock:
    """Held from the moment it is made until `release`, or until the process ends."""

    def __init__(self, path: Path, *, what: str, say: Callable[[str], None], owner: Owner | None = None) -> None:
        """Takes the lock, waiting up to STALE_AFTER for a sign of life of an owner on another host.

        `what` begins the message if the lock is another's, for example `run_dir: another process is training in runs/a`.
        Raises UserError then, and OSError if the file can't be written.
        """
        self.path = path
        self.owner = owner or this_process()
        self._file = _take(path, self.owner, what, say)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raises OSError if the lock is another's by now: this process was asleep or cut off for longer than STALE_AFTER."""
        found = _owner_in(self._file)
        if found is not None and found.token != self.owner.token:
            raise OSError(
                errno.EBUSY, f"taken over by {found}, which saw no sign of life of this process", str(self.path)
            )

    def release(self) -> None:
        """Ends the heartbeat and removes the file, if it is still this process's."""
        self._ended.set()
        self._heart.join(1.0)
        with suppress(OSError):
            self.check()
            if _is_at(self._file, self.path):
                self.path.unlink()
        os.close(self._file)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a disk that is away for a while; watchers see it away too
                os.utime(self._file)  # reaches other hosts at once, without a write that would have to be synced


def _take(path: Path, me: Owner, what: str, say: Callable[[str], None]) -> int:
    """Opens the lock file as its owner. While another host's owner is watched, the file is closed between looks."""
    watched: tuple[object, float] | None = None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_free = _lock(file)
            found = _owner_in(file)
            sign = (found, os.fstat(file).st_mtime_ns)
            is_dead = _is_dead(found, me, is_free)
            if is_dead is None:
                if watched is None:
                    say(f"{path} is held by {found}. Waiting up to {STALE_AFTER:.0f} s for a sign of life.")
                    watched = (sign, time.monotonic())
                elif sign != watched[0]:
                    is_dead = False
                elif time.monotonic() - watched[1] >= STALE_AFTER:
                    is_dead = True
            if is_dead is False:
                raise NotNow(
                    f"{what}{f' ({found})' if found else ''}, and two would overwrite each other. End it, or choose another "
                    "folder.",
                    code="AT306",
                )
            if is_dead and _is_at(file, path):
                os.pwrite(file, json.dumps(asdict(me)).encode().ljust(RECORD_BYTES), 0)
                if found is not None and (found.boot, found.pid) != (me.boot, me.pid):
                    say(f"{path}: taken over from {found}, which is dead.")
                kept, file = file, -1
                return kept
        finally:
            if file != -1:
                os.close(file)
        time.sleep(LOOK_EVERY if watched else 0.01)


def _is_dead(found: Owner | None, me: Owner, is_free: bool | None) -> bool | None:
    """Whether the owner of a lock has ended. None: only its heartbeat can tell. `is_free` is what `_lock` returned."""
    if found is None:
        return is_free is not False
    if found.boot == me.boot:
        if is_free is not None:
            return is_free
        return _start_of(found.pid) != found.pid_started if found.pid_space == me.pid_space else None
    if me.slurm_job and found.slurm_job == me.slurm_job and found.slurm_restarts < me.slurm_restarts:
        return True  # Slurm ends a job everywhere before it starts it again
    return None


def _lock(file: int) -> bool | None:
    """Asks for the advisory lock: True if it is this process's now, False if another's, None without locks."""
    try:
        # Unlike flock, this lock does not pass on to loader processes, which outlive a killed rank by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _owner_in(file: int) -> Owner | None:
    """The owner that the file names; None for a file that has just been made, or holds something else."""
    try:
        entry = read_json(os.pread(file, RECORD_BYTES, 0).decode())
        values = {field.name: entry[field.name] for field in fields(Owner)}
    except (ValueError, KeyError, TypeError):
        return None
    is_sound = all(type(value) is (int if name in NUMBERS else str) for name, value in values.items())
    return Owner(**values) if is_sound else None


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that has this name: its owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _start_of(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" if there is none of this number."""
    fields_after_name = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields_after_name[19] if fields_after_name else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
