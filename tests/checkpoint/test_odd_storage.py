"""File systems that can do less than a disk: what can work there works, what can't is one clear error."""

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_train.checkpoint import files, folders
from accel_train.checkpoint.files import DamagedCheckpoint
from accel_train.checkpoint.folders import point, pointed_at, wait_for_folder, wait_until_whole
from accel_train.errors import CheckFailed
from accel_train.resume import checkpoint_folder
from tests.checkpoint.stand_in import Crash, Run, saved_run, some_tensors


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error(number)

    return fail


# Renaming


def refuse_to_rename_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    rename = Path.rename

    def only_files(path: Path, target: Path) -> Path:
        if path.is_dir():
            raise error(number)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_files)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])
def test_folders_that_can_not_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_to_rename_folders(monkeypatch, number)
    run = Run(tmp_path, some_tensors(), ranks=2)
    for step in (1, 2, 3):
        run.save(step, best_step=1)
    (run.root / "step_00000003" / files.INDEX_FILE).unlink()
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert run.names() == ["best", "latest", "step_00000001", "step_00000002", "step_00000003.damaged"]


def test_a_crash_between_two_files_of_a_move_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_rename_folders(monkeypatch, errno.EXDEV)
    resumed_at = []
    replace = Path.replace
    for at in range(1, 30):
        run = saved_run(tmp_path / str(at), [1, 2], keep_last=2)
        moved = 0

        def crash_at(path: Path, target: Path, at: int = at) -> Path:
            nonlocal moved
            moved += 1
            if moved == at:
                raise Crash
            return replace(path, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", crash_at)
            (outcome,) = run.save(3)
        state = run.resume()
        assert state is not None
        resumed_at.append(state.step)
        assert run.save(4) == [run.root / "step_00000004"]
        assert run.resume().step == 4  # type: ignore[union-attr]
        if not isinstance(outcome, Crash):
            break
    assert resumed_at == sorted(resumed_at)
    assert set(resumed_at) == {2, 3}


def test_a_rename_that_copies_and_is_cut_off_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems on top of object stores do it. The copies come in any order, state.json perhaps first."""
    run = saved_run(tmp_path, [1, 2])

    def copy_some(path: Path, target: Path) -> Path:
        target.mkdir()
        for file in sorted(path.iterdir(), reverse=True)[:2]:
            shutil.copy(file, target)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", copy_some)
        run.save(3)
    assert (run.root / "step_00000003" / files.STATE_FILE).exists()
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert "step_00000003 is damaged and passed over" in run.logs[0].said[0]
    run.save(3)
    assert run.resume().step == 3  # type: ignore[union-attr]


# Links


def test_where_links_are_refused_a_file_names_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", fail_with(errno.EPERM))
    run = Run(tmp_path, some_tensors(), keep_last=1)
    for step in (1, 2, 3):
        run.save(step, best_step=1)
    assert run.names() == ["best", "latest", "step_00000001", "step_00000003"]
    assert (run.root / "latest").read_text() == "step_00000003\n"
    assert run.resume().step == 3  # type: ignore[union-attr]
    for which, step in (("best", 1), ("latest", 3), ("step_00000003", 3)):
        assert checkpoint_folder(tmp_path, which) == run.root / f"step_{step:08d}"
    monkeypatch.undo()
    run.save(4, best_step=4)
    assert os.readlink(run.root / "best") == os.readlink(run.root / "latest") == "step_00000004"


def test_a_name_that_leads_nowhere_is_no_checkpoint(tmp_path: Path) -> None:
    saved_run(tmp_path, [1])
    root = tmp_path / "checkpoints"
    for content in ("", "step_00000009", "../..", "/"):
        (root / "best").write_text(content)
        assert pointed_at(root / "best") is None
    (root / "best").unlink()
    point(root / "best", root / "step_00000009")
    assert pointed_at(root / "best") is None


# Synchronising


def refuse_to_sync(monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], bool], number: int) -> None:
    sync = os.fsync

    def only_others(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise error(number)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_others)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_folders_that_can_not_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_to_sync(monkeypatch, stat.S_ISDIR, number)
    run = Run(tmp_path, some_tensors(), ranks=2)
    run.save(1)
    assert run.resume().step == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_a_sync_that_fails_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], bool]
) -> None:
    run = saved_run(tmp_path, [1])
    refuse_to_sync(monkeypatch, kind, errno.EIO)
    (outcome,) = run.save(2)
    assert isinstance(outcome, CheckFailed)
    assert "Input/output error" in str(outcome)
    assert run.names() == ["latest", "step_00000001"]


# Quota, read-only, gone


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize(
    ("number", "what"),
    [(errno.EDQUOT, "quota exceeded"), (errno.EROFS, "Read-only file system"), (errno.ESTALE, "Stale file handle")],
)
def test_what_the_system_refuses_is_said_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str, in_background: bool
) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=in_background)
    run.save_and_settle(1)
    if number == errno.EROFS:
        monkeypatch.setattr(Path, "mkdir", fail_with(number))
    else:
        refuse_to_sync(monkeypatch, stat.S_ISREG, number)
    outcomes = run.save_and_settle(2)
    assert [type(outcome) for outcome in outcomes] == [CheckFailed] * 2
    assert what in str(outcomes[0]) and "The last good checkpoint is step_00000001" in str(outcomes[0])
    monkeypatch.undo()
    assert run.names() == ["latest", "step_00000001"]
    run.save_and_settle(2)
    assert run.resume().step == 2  # type: ignore[union-attr]


def test_a_folder_removed_while_the_background_writes_to_it(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=True)
    run.save_and_settle(1)
    run.save(2)
    while not all(checkpoints.is_written for checkpoints in run.checkpoints):
        time.sleep(0.001)
    shutil.rmtree(run.root / ".step_00000002.partial")
    outcomes = run.ranks.run(lambda rank: run.checkpoints[rank].settle())
    assert all("No such file or directory" in str(outcome) for outcome in outcomes)
    assert run.names() == ["latest", "step_00000001"]


# Other hosts see it later


def test_what_another_host_wrote_may_be_seen_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 sees the newest checkpoint at once, rank 1 for a while an older state of the folder."""
    monkeypatch.setattr(folders, "LOOK_EVERY", 0.01)
    saved_run(tmp_path, [1, 2])
    read = files.read_state
    looks = []

    def read_late(folder: Path) -> dict[str, Any]:
        if threading.current_thread().name == "rank 1" and len(looks) < 5:
            looks.append(folder)
            raise DamagedCheckpoint(f"{folder}: not there")
        return read(folder)

    monkeypatch.setattr(files, "read_state", read_late)
    run = Run(tmp_path, some_tensors(), ranks=2)
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert run.logs[0].said == []
    assert len(looks) == 5


def test_a_folder_that_rank_0_made_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "late"
    timer = threading.Timer(0.2, folder.mkdir)
    timer.start()
    wait_for_folder(folder)
    assert folder.is_dir()
    timer.join()
    monkeypatch.setattr(folders, "VISIBLE_WITHIN", 0.2)
    wait_for_folder(tmp_path / "never")


def test_content_that_comes_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_run(tmp_path, [1])
    path = tmp_path / "checkpoints" / "step_00000001" / "rank_00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:10])
    timer = threading.Timer(0.2, lambda: path.write_bytes(content))
    timer.start()
    assert wait_until_whole(path.parent)["step"] == 1
    timer.join()
    path.unlink()
    monkeypatch.setattr(folders, "VISIBLE_WITHIN", 0.2)
    with pytest.raises(DamagedCheckpoint, match=r"rank_00000\.safetensors is missing"):
        wait_until_whole(path.parent)
