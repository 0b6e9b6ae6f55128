import errno
import subprocess
import sys

import pytest

from accel_train.errors import UserError
from accel_train.tools.sweep.locks import Claim, locked, try_lock


def test_a_lock_is_held_by_one_and_dropped_when_closed(tmp_path):
    first = try_lock(tmp_path / "new folder" / "lock")
    assert first is not None
    assert try_lock(tmp_path / "new folder" / "lock") is None
    first.close()
    again = try_lock(tmp_path / "new folder" / "lock")
    assert again is not None
    again.close()


def test_the_process_of_a_claim_holds_one_of_its_locks_when_the_worker_is_gone(tmp_path):
    worker, process = try_lock(tmp_path / "worker"), try_lock(tmp_path / "process")
    claim = Claim(worker, process)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        pass_fds=[claim.for_process],
        stdout=subprocess.DEVNULL,
    )
    try:
        for file in (worker, process):  # as the kernel does when the worker is killed
            file.close()
        left = try_lock(tmp_path / "worker")
        assert left is not None
        left.close()
        assert try_lock(tmp_path / "process") is None
    finally:
        child.communicate(b"\n")
    left = try_lock(tmp_path / "process")
    assert left is not None
    left.close()


def test_release_drops_both_though_a_process_still_lives(tmp_path):
    claim = Claim(try_lock(tmp_path / "worker"), try_lock(tmp_path / "process"))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[claim.for_process])
    claim.release()
    files = [try_lock(tmp_path / name) for name in ("worker", "process")]
    child.communicate(b"\n")
    assert None not in files
    for file in files:
        file.close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="file system without locks"), locked(tmp_path / "lock"):
        pass
    with pytest.raises(UserError, match="file system without locks"):
        try_lock(tmp_path / "lock")
