"""Checkpoints that are damaged, or of another model: named, passed over, never loaded."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import accel_train.checkpoint.files
import accel_train.checkpoint.pieces
import accel_train.checkpoint.store
from accel_train.checkpoint.files import DamagedCheckpoint, FileRecord, check_files, read_state
from accel_train.checkpoint.folders import all_folders
from accel_train.checkpoint.load import load_weights
from accel_train.errors import UserError
from tests.checkpoint.stand_in import Layout, Run, plan_of, saved_run, some_tensors


def test_a_damaged_newest_is_named_passed_over_and_set_aside(tmp_path: Path) -> None:
    saved_run(tmp_path, [2, 4, 6], best_step=6)
    root = tmp_path / "checkpoints"
    (root / "step_00000006" / "rank_00000.safetensors").unlink()
    (root / "step_00000004" / "index.json").write_text("{}")
    run = Run(tmp_path, some_tensors(), ranks=2)
    state = run.resume()
    assert state is not None
    assert state.step == 2
    assert run.logs[0].said[0].startswith("warning: checkpoint step_00000006 is damaged and passed over: ")
    assert "rank_00000.safetensors is missing" in run.logs[0].said[0]
    assert "index.json has 2 bytes instead of" in run.logs[0].said[1]
    assert "step_00000006.damaged" in run.names() and "step_00000006" not in run.names()
    assert os.readlink(run.root / "latest") == "step_00000002"
    run.save(4)
    run.save(6, best_step=6)
    assert [folder.name for folder in all_folders(root)] == ["step_00000006", "step_00000004"]
    check_files(root / "best", read_state(root / "best"))


def test_a_damaged_newest_never_costs_the_good_one(tmp_path: Path) -> None:
    saved_run(tmp_path, [2, 8], keep_last=9)
    (tmp_path / "checkpoints" / "step_00000008" / "index.json").unlink()
    run = Run(tmp_path, some_tensors(), keep_last=1)
    assert run.resume().step == 2  # type: ignore[union-attr]
    run.save(5)
    assert [folder.name for folder in all_folders(run.root)] == ["step_00000005"]
    assert Run(tmp_path, some_tensors()).resume().step == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("ranks", [1, 2])
def test_if_all_are_damaged_every_rank_stops_and_nothing_is_touched(tmp_path: Path, ranks: int) -> None:
    saved_run(tmp_path, [2, 4])
    for folder in all_folders(tmp_path / "checkpoints"):
        (folder / "state.json").write_text('{"format": 1}')
    before = sorted(tmp_path.rglob("*"))
    run = Run(tmp_path, some_tensors(), ranks=ranks)
    outcomes = run.ranks.run(lambda rank: run.checkpoints[rank].newest_valid())
    assert all(isinstance(outcome, UserError) for outcome in outcomes), outcomes
    assert "none of the 2 checkpoints is whole" in str(outcomes[0])
    assert "state.json: not a checkpoint of format" in run.logs[0].said[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_can_not_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run(tmp_path, [2, 4])

    original = accel_train.checkpoint.files.record_of

    def read(path: Path) -> FileRecord:
        if "step_00000004" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(accel_train.checkpoint.files, "record_of", read)
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert "Input/output error" in run.logs[0].said[0]


def test_weights_of_a_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [2])
    (run.root / "latest" / "rank_00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"can't be used: .*rank_00000\.safetensors has 10 bytes"):
        load_weights(run.root / "latest")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embedding": torch.zeros(5, 4)}, r"embedding has shape \(5, 3\) there and \(5, 4\) in the model"),
        ({"embedding": torch.zeros(3, 5)}, r"embedding has shape \(5, 3\) there and \(3, 5\) in the model"),
        ({"extra.weight": torch.zeros(2)}, r"holds no weight of extra\.weight: .*use initialize_from"),
    ],
)
def test_another_model_is_refused_by_name_and_shape(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    saved_run(tmp_path, [2])
    with pytest.raises(UserError, match=message):
        Run(tmp_path, tensors).resume()


def test_state_of_a_newly_trained_parameter_is_missing_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors())
    run.checkpoints[0].state_names = ()  # as if everything had been frozen
    run.save(2)
    with pytest.raises(UserError, match="holds no exp_avg of embedding: the model or its frozen layers changed"):
        Run(tmp_path, some_tensors()).resume()


def test_parameters_that_begin_at_this_step_need_no_state(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors())
    run.checkpoints[0].state_names = ()
    run.save(2)
    after = Run(tmp_path, some_tensors(1))
    after.plan = plan_of(some_tensors(), first_step=2)
    after.resume()
    (engine,) = after.engines
    assert engine.loaded_updates == [0]
    assert torch.equal(engine.storage["embedding"]["weight"], some_tensors()["embedding"])


def test_reading_needs_no_file_beside_those_of_the_record(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [1])
    (run.root / "step_00000001" / ".nfs0001").touch()
    assert run.resume().step == 1  # type: ignore[union-attr]
    (run.root / "step_12").mkdir()
    (run.root / "step_00000002.tmp").mkdir()
    assert [folder.name for folder in all_folders(run.root)] == ["step_00000001"]


def test_an_index_that_leaves_a_gap_is_damage(tmp_path: Path) -> None:
    layout: Layout = [[("embedding", 0, 5)]]
    run = Run(tmp_path, {"embedding": torch.ones(15)}, layout)
    run.save(1)
    with pytest.raises(DamagedCheckpoint, match="weight of embedding is not complete"):
        Run(tmp_path, {"embedding": torch.ones(15)}).resume()
