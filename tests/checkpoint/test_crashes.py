"""What a crash at any moment leaves behind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import accel_train.checkpoint.files
import accel_train.checkpoint.pieces
import accel_train.checkpoint.store
from accel_train.checkpoint.state import TrainState
from tests.checkpoint.stand_in import Crash, Run, saved_run, some_tensors

CRASH_POINTS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "symlink"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (shutil, "rmtree"),
    (accel_train.checkpoint.store, "write_pieces"),
]


def crash_at(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Lets the at-th change of the file system be the last one, and only half done where it can be. Counts them."""
    count = 0

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def change(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if name == "rmtree" and Path(arguments[0]).is_dir():
                    next(Path(arguments[0]).iterdir()).unlink()
                if name == "write_pieces":
                    (arguments[0] / arguments[1].file_name).write_bytes(b"half a file")
                raise Crash(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, change)

    for owner, name in CRASH_POINTS:
        counted(owner, name)
    return lambda: count


def test_a_crash_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Steps 1 (best), 2 and 3 are there; the save of 4, the new best, prunes 1 and 2. Any of its changes may be the last."""
    old = {step: tensors_of(step) for step in (1, 2, 3, 4)}
    resumed_at = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        for step in (1, 2, 3):
            Run(folder, old[step], keep_last=2).save(step, best_step=1)
        with pytest.MonkeyPatch.context() as patch:
            changes = crash_at(patch, at)
            outcome = Run(folder, old[4], keep_last=2).save(4, best_step=4)[0]
        if not isinstance(outcome, Crash):
            assert changes() == at - 1 > 12
            break
        run = Run(folder, some_tensors(), keep_last=2)
        state = run.resume()
        assert state is not None
        resumed_at.append(state.step)
        assert all(
            torch.equal(run.engines[0].storage[name]["weight"], tensor) for name, tensor in old[state.step].items()
        ), f"crash at change {at} ({outcome}): the weights of step {state.step} are not those that were saved"
        kept = [3, 4] if state.step == 4 else [1, 2, 3]
        assert run.names() == ["best", "latest", *(f"step_{step:08d}" for step in kept)], (
            f"crash at change {at} ({outcome})"
        )
        assert os.readlink(run.root / "latest") == f"step_{state.step:08d}"
        assert os.readlink(run.root / "best") == f"step_{state.best_step:08d}"
        assert run.save(5, best_step=state.best_step) == [run.root / "step_00000005"]
    assert resumed_at == sorted(resumed_at)
    assert set(resumed_at) == {3, 4}, "crashes came before and after the checkpoint was complete"


def tensors_of(step: int) -> dict[str, Tensor]:
    return {name: tensor + step for name, tensor in some_tensors().items()}


def test_a_crash_while_tidying_up_after_a_crash(tmp_path: Path) -> None:
    for at in range(1, 100):
        folder = tmp_path / str(at)
        saved_run(folder, [1, 2, 3], best_step=2)
        (folder / "checkpoints" / "step_00000003" / "state.json").unlink()
        (folder / "checkpoints" / ".step_00000004.partial").mkdir()
        (folder / "checkpoints" / ".step_00000004.partial" / "file").touch()
        (folder / "checkpoints" / "best").unlink()
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, at)
            try:
                assert Run(folder, some_tensors(), keep_last=1).resume() == TrainState(step=2, best_step=2)
                break
            except Crash:
                pass
        run = Run(folder, some_tensors(), keep_last=1)
        assert run.resume() == TrainState(step=2, best_step=2)
        assert run.names() == ["best", "latest", "step_00000002", "step_00000003.damaged"]
    assert at > 5
