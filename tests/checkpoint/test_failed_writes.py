"""A write that fails stops every rank with one message and spares the last good checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import accel_train.checkpoint.files
import accel_train.checkpoint.store
from accel_train.errors import CheckFailed
from tests.checkpoint.stand_in import Run, saved_run, some_tensors


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_stopped(run: Run, outcomes: list[Any], said: str, last_good: str = "step_00000002") -> None:
    assert all(isinstance(outcome, CheckFailed) for outcome in outcomes), outcomes
    assert len({str(outcome) for outcome in outcomes}) == 1, "every rank says the same"
    assert said in str(outcomes[0])
    assert f"The last good checkpoint is {last_good}" in str(outcomes[0])
    assert list(run.root.glob(".step_*")) == []


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("failing_rank", [0, 1, 2])
@pytest.mark.parametrize("what", ["write_pieces", "write_json", "write_state", "sync"])
def test_a_failed_write_stops_every_rank_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int, what: str, in_background: bool
) -> None:
    run = Run(tmp_path, some_tensors(), ranks=3, in_background=in_background)
    run.save_and_settle(2)
    before = contents(run.root)
    owner = accel_train.checkpoint.store if what == "write_pieces" else accel_train.checkpoint.files
    original = vars(owner)[what]
    failing = failing_rank if what == "write_pieces" else 0

    def full(target: Path, *arguments: Any) -> Any:
        if what == "write_pieces" and arguments[0].file_name != f"rank_{failing_rank:05d}.safetensors":
            return original(target, *arguments)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(owner, what, full)
    outcomes = run.save_and_settle(4)
    assert_stopped(run, outcomes, "No space left on device")
    assert f"rank {failing} could not" in str(outcomes[0])
    assert contents(run.root) == before
    assert run.names() == ["latest", "step_00000002"]


def test_a_log_that_could_not_be_written_stops_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.logs[0], "sync", full)
    outcomes = run.save(4)
    assert [type(outcome) for outcome in outcomes] == [CheckFailed, CheckFailed]
    assert "rank 0 could not write the log: No space left on device" in str(outcomes[1])
    assert "The last good checkpoint is none" in str(outcomes[1])


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run = Run(small_disk, {"weight": torch.ones(40_000)}, ranks=2, keep_last=1)  # 320 kB a checkpoint
    run.save(1)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 400_000)
    outcomes = run.save(2)
    assert all(isinstance(outcome, CheckFailed) for outcome in outcomes), outcomes
    assert "No space left on device" in str(outcomes[0])
    assert run.names() == ["latest", "step_00000001"]
    assert run.resume().step == 1  # type: ignore[union-attr]
    filler.unlink()
    run.save(2)
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert run.names() == ["latest", "step_00000002"]


def test_a_checkpoints_folder_removed_under_the_run(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [1])
    shutil.rmtree(tmp_path / "checkpoints")
    run.save(2)
    assert run.resume().step == 2  # type: ignore[union-attr]
