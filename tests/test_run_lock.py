"""Whose a folder is: owners that live, died here, died elsewhere, or show only by their heartbeat which it is."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from accel_train import run_lock
from accel_train.errors import UserError
from accel_train.run_lock import Owner, RunLock, this_process

ELSEWHERE = replace(this_process(), host="node7", boot="another kernel", pid=4711, token="theirs")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "STALE_AFTER", 0.4)
    monkeypatch.setattr(run_lock, "LOOK_EVERY", 0.02)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def take(path: Path, said: list[str] | None = None, owner: Owner | None = None) -> RunLock:
    return RunLock(path, what="it is taken", say=(said if said is not None else []).append, owner=owner)


def seconds_to_take(path: Path, said: list[str] | None = None, owner: Owner | None = None) -> float:
    start = time.monotonic()
    take(path, said, owner).release()
    return time.monotonic() - start


def left_by(path: Path, owner: Owner) -> None:
    """What a crash leaves."""
    path.write_bytes(json.dumps(asdict(owner)).encode().ljust(run_lock.RECORD_BYTES))


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """The heartbeat of a host elsewhere."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    holder = f"""
import sys
from pathlib import Path
from accel_train.run_lock import RunLock
lock = RunLock(Path({str(path)!r}), what="", say=print)
print("holds it", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"holds it\n"
        try:
            yield other
        finally:
            other.kill()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def locked_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_it_leaves_nothing_behind(path: Path) -> None:
    said: list[str] = []
    lock = take(path, said)
    lock.check()
    assert path.exists()
    lock.release()
    assert not path.exists()
    assert said == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_process_of_this_host_holds_it_until_it_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    if not has_locks:
        without_locks(monkeypatch)
    said: list[str] = []
    with another_process(path) as other:
        with pytest.raises(UserError, match=rf"^it is taken \(process {other.pid} on \S+, since .*End it"):
            take(path, said)
        assert said == [], "nothing to wait for"
        other.kill()
        other.wait()
        assert seconds_to_take(path, said) < 0.3
    assert len(said) == 1 and f"taken over from process {other.pid}" in said[0]


def test_without_locks_a_later_process_with_the_number_is_not_the_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    left_by(path, replace(this_process(), pid=os.getppid(), pid_started="1"))
    assert seconds_to_take(path) < 0.3


def test_without_locks_the_number_of_a_process_in_another_container_says_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    owner = replace(this_process(), pid=2**22 - 1, pid_space="pid:[1]")
    left_by(path, owner)
    with beating(path), pytest.raises(UserError, match="it is taken"):
        take(path)
    assert seconds_to_take(path) >= 0.4


@pytest.mark.parametrize("sees_the_lock", [True, False])
def test_an_owner_elsewhere_is_known_by_its_heartbeat(
    path: Path, monkeypatch: pytest.MonkeyPatch, sees_the_lock: bool
) -> None:
    if sees_the_lock:
        locked_by_another(monkeypatch)
    left_by(path, ELSEWHERE)
    said: list[str] = []
    with beating(path), pytest.raises(UserError, match=r"it is taken \(process 4711 on node7"):
        take(path, said)
    assert len(said) == 1 and "held by process 4711 on node7" in said[0] and "sign of life" in said[0]


@pytest.mark.parametrize("outlived_by_its_lock", [True, False])
def test_an_owner_elsewhere_without_heartbeat_is_dead(
    path: Path, monkeypatch: pytest.MonkeyPatch, outlived_by_its_lock: bool
) -> None:
    """Some servers keep the lock of a host that has died."""
    if outlived_by_its_lock:
        locked_by_another(monkeypatch)
    left_by(path, ELSEWHERE)
    os.utime(path, (2e9, 2e9))  # the other host's clock is years ahead
    said: list[str] = []
    assert 0.4 <= seconds_to_take(path, said) < 3
    assert len(said) == 2 and "taken over from process 4711 on node7" in said[1]


@pytest.mark.parametrize(("job", "restarts", "at_once"), [("5", 1, True), ("5", 0, False), ("6", 1, False)])
def test_a_job_that_slurm_starts_again_takes_over_from_itself(
    path: Path, job: str, restarts: int, at_once: bool
) -> None:
    left_by(path, replace(ELSEWHERE, slurm_job="5", slurm_restarts=0))
    me = replace(this_process(), slurm_job=job, slurm_restarts=restarts)
    assert (seconds_to_take(path, owner=me) < 0.3) is at_once


def test_slurm_names_the_job_and_how_often_it_was_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (this_process().slurm_job, this_process().slurm_restarts) == ("77", 2)
    assert "Slurm job 77" in str(this_process())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"{}", b'{"host": 3}', b"[" * 5000])
def test_a_file_without_an_owner_holds_nobody(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert seconds_to_take(path) < 0.3


def test_a_heart_beats(path: Path) -> None:
    lock = take(path)
    seen = {path.stat().st_mtime_ns}
    for _ in range(100):
        time.sleep(0.01)
        seen.add(path.stat().st_mtime_ns)
    lock.release()
    assert len(seen) > 5


def test_an_owner_that_was_taken_for_dead_learns_of_it(path: Path) -> None:
    """Its host was cut off, say, and comes back."""
    lock = take(path)
    left_by(path, ELSEWHERE)
    with pytest.raises(OSError, match="taken over by process 4711 on node7"):
        lock.check()
    lock.release()
    assert path.exists(), "it is another's now"


def test_a_file_that_its_owner_has_just_removed_is_not_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking it: who locks the nameless file must not believe to hold the folder."""
    lock = run_lock._lock
    removed = []

    def remove_first(file: int) -> bool | None:
        if not removed:
            path.unlink()
            removed.append(file)
        return lock(file)

    monkeypatch.setattr(run_lock, "_lock", remove_first)
    mine = take(path)
    assert path.stat().st_ino == os.fstat(mine._file).st_ino
    mine.release()


def test_a_folder_that_can_not_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "nowhere" / "run.lock")
