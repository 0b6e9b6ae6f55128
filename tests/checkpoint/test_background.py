"""Saves that go on in a thread: what they hold, when they are published, and what becomes of one that nobody waits for."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import accel_train.checkpoint.store
from accel_train.checkpoint.background import HostCopy
from accel_train.checkpoint.files import Reader
from accel_train.checkpoint.state import TrainState
from tests.checkpoint.stand_in import ABOUT, Layout, Run, some_tensors


class SlowDisk:
    """Writes nothing before it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        write = accel_train.checkpoint.store.write_pieces

        def slowly(*arguments: Any) -> Any:
            assert self.go_on.wait(20)
            return write(*arguments)

        monkeypatch.setattr(accel_train.checkpoint.store, "write_pieces", slowly)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def settle(run: Run) -> list[Any]:
    return run.ranks.run(lambda rank: run.checkpoints[rank].settle())


def wait_until_written(run: Run) -> None:
    for checkpoints in run.checkpoints:
        while not checkpoints.is_written:
            threading.Event().wait(0.001)


SHARDS: Layout = [[("embedding", 0, 7), ("bias", 0, 4)], [("embedding", 7, 15), ("scale", 0, 1)]]


@pytest.mark.parametrize("layout", [None, SHARDS])
def test_it_holds_what_was_there_when_it_began(tmp_path: Path, slow_disk: SlowDisk, layout: Layout | None) -> None:
    run = Run(tmp_path, some_tensors(), layout, ranks=2, in_background=True)
    run.engines[0].module(torch.randn(8, 3) + 5)
    mean = run.engines[0].module.running_mean.clone()
    state = TrainState(step=3, losses=[[1.0, 2.0]])
    run.ranks.run(lambda rank: run.checkpoints[rank].save(state, ABOUT))
    assert run.names() == [".step_00000003.partial"]
    state.step = 4
    state.losses.append([0.0, 0.0])
    for engine, checkpoints in zip(run.engines, run.checkpoints, strict=True):
        engine.module(torch.randn(8, 3))  # the next forward pass changes buffers, and the update the rest
        checkpoints.wait_for_copy()
        for tensors in engine.storage.values():
            for tensor in tensors.values():
                tensor.zero_()
    slow_disk.go_on.set()
    settle(run)

    assert run.names() == ["latest", "step_00000003"]
    for engine in run.engines:
        engine.module(torch.randn(8, 3))
    assert run.resume() == TrainState(step=3, losses=[[1.0, 2.0]])
    reader = Reader(run.root / "latest")
    assert torch.equal(reader.read("buffer", "running_mean"), mean)
    for name, tensor in some_tensors().items():
        assert torch.equal(reader.read("weight", name), tensor)
        assert torch.equal(reader.read("exp_avg", name), tensor + 1)


def test_training_waits_for_the_copy_where_it_would_change_what_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the copy takes longer than the gradients, and the time that the update waits counts as a stall."""
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=True)
    finish, in_copy = HostCopy.finish, threading.Event()

    def slowly(host_copy: HostCopy) -> None:
        in_copy.set()
        threading.Event().wait(0.2)
        finish(host_copy)

    monkeypatch.setattr(HostCopy, "finish", slowly)
    run.save(3)
    assert in_copy.wait(20)
    for engine, checkpoints in zip(run.engines, run.checkpoints, strict=True):
        checkpoints.wait_for_copy()
        for tensors in engine.storage.values():
            tensors["weight"].zero_()
    settle(run)
    assert run.checkpoints[0].new_seconds()["save_stall_seconds"] > 0.1
    reader = Reader(run.root / "latest")
    assert all(torch.equal(reader.read("weight", name), tensor) for name, tensor in some_tensors().items())


def test_a_copy_that_fails_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, some_tensors(), in_background=True)
    begin = HostCopy.begin

    def of_another_size(host_copy: HostCopy, pieces: Any) -> None:
        begin(host_copy, pieces)
        host_copy._to_come[-1] = (torch.empty(3), torch.empty(4))

    monkeypatch.setattr(HostCopy, "begin", of_another_size)
    run.save(3)
    run.checkpoints[0].wait_for_copy()
    with pytest.raises(RuntimeError, match="must match the size"):
        run.checkpoints[0].settle()


def test_the_next_save_waits_and_says_so(tmp_path: Path, slow_disk: SlowDisk) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=True)
    run.save(3)
    assert run.save(3) == [run.root / "step_00000003"] * 2, "it is under way already"
    threading.Timer(0.2, slow_disk.go_on.set).start()
    run.save(6)
    assert run.logs[0].said == ["the checkpoint of step 3 is still being written; that of step 6 waits for it"]
    assert [name for name in run.names() if name.startswith("step")] == ["step_00000003"]
    settle(run)
    assert [name for name in run.names() if name.startswith("step")] == ["step_00000003", "step_00000006"]
    stalled, total = map(float, re.findall(r"([\d.]+) s", run.logs[0].noted[0]))
    assert 0.15 < stalled <= total
    assert run.checkpoints[0].seconds_to_leave == pytest.approx(2 * (run.checkpoints[0].longest_save_seconds or 0))
    seconds = run.checkpoints[0].new_seconds()
    assert 0 < seconds["save_stall_seconds"] <= seconds["save_seconds"]
    assert run.checkpoints[0].new_seconds() == {}, "each save is reported once"


def test_each_rank_knows_when_its_part_is_written(tmp_path: Path, slow_disk: SlowDisk) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=True)
    assert [checkpoints.is_written for checkpoints in run.checkpoints] == [False, False]
    run.save(3)
    assert [checkpoints.is_written for checkpoints in run.checkpoints] == [False, False]
    slow_disk.go_on.set()
    wait_until_written(run)
    assert run.names() == [".step_00000003.partial"], "published by the ranks together, not by a thread"
    settle(run)
    assert [checkpoints.is_written for checkpoints in run.checkpoints] == [False, False]
    assert run.names() == ["latest", "step_00000003"]


def test_whoever_looks_for_a_checkpoint_finds_the_one_under_way(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, in_background=True)
    run.save(3)
    found = run.ranks.run(lambda rank: run.checkpoints[rank].newest_valid())
    assert [folder for folder, _ in found] == [run.root / "step_00000003"] * 2


def test_host_memory_is_taken_once(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), in_background=True)
    places = set()
    for step in (1, 2, 3):
        run.save_and_settle(step)
        places.add(run.checkpoints[0]._host_copy._memory.data_ptr())
    assert len(places) == 1


def test_no_memory_for_a_copy_is_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def refuse(size: int, **options: Any) -> torch.Tensor:
        if size > 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(size, **options)

    run = Run(tmp_path, some_tensors(), in_background=True)
    monkeypatch.setattr(torch, "empty", refuse)
    (outcome,) = run.save(1)
    assert "rank 0 could not copy its part: no host memory for a copy of 0.0 GiB" in str(outcome)


def test_a_save_that_is_given_up_ends_soon_and_leaves_nothing_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error elsewhere ends the run while the thread writes."""
    run = Run(tmp_path, some_tensors(), in_background=True)
    in_write, go_on = threading.Event(), threading.Event()

    def stop_in_write(chunks: Callable[..., Any]) -> Callable[..., Any]:
        def chunk_by_chunk(*arguments: Any) -> Any:
            for chunk in chunks(*arguments):
                yield chunk
                in_write.set()
                assert go_on.wait(20)

        return chunk_by_chunk

    pieces = accel_train.checkpoint.pieces
    monkeypatch.setattr(pieces, "CHUNK", 16)
    monkeypatch.setattr(pieces, "_chunks", stop_in_write(pieces._chunks))
    run.save(1)
    assert in_write.wait(20)
    threading.Timer(0.05, go_on.set).start()
    run.checkpoints[0].close()
    assert run.names() == [".step_00000001.partial"]
    assert Run(tmp_path, some_tensors()).resume() is None
