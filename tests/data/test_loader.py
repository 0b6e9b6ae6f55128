import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accel_train.config.contrastive import PairData
from accel_train.data import loader
from accel_train.data.dataset import UnreadableSample
from accel_train.data.loader import Step, evaluation_batches, train_steps
from accel_train.data.order import Order
from accel_train.data.pairs import ImageDataset, PairDataset, TextDataset
from accel_train.errors import CheckFailed, UserError

MakeSection = Callable[..., PairData]
AUGMENTED = {"augmentation": {"crop_scale": [0.5, 1.0], "horizontal_flip": 0.5, "mask_tokens": 0.3}}


class Numbers:
    """Row k is the number k; some rows can't be read, and row `fatal` kills the process that reads it."""

    fingerprint = "numbers"

    def __init__(self, length: int, unreadable: tuple[int, ...] = (), fatal: int | None = None) -> None:
        self.length = length
        self.unreadable = unreadable
        self.fatal = fatal

    def __len__(self) -> int:
        return self.length

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        if row == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if row in self.unreadable:
            raise UnreadableSample(f"row {row}")
        return {"sample_id": torch.tensor(row), "epoch": torch.tensor(-1 if epoch is None else epoch)}


def steps_of(dataset, data, *, rank=0, world_size=1, first_step=0, last_step=3, order=None) -> list[Step]:  # type: ignore[no-untyped-def]
    order = order or Order(len(dataset), data.global_batch_size, seed=5, last_batch=data.last_batch)
    return list(
        train_steps(
            dataset,
            order,
            data,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
            last_step=last_step,
            seed=5,
            pin_memory=False,
        )
    )


def equal(first: Step, second: Step) -> bool:
    return (first.step, first.epoch, first.positions) == (second.step, second.epoch, second.positions) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first.micro_batches, second.micro_batches, strict=True)
    )


@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [(1, "fork"), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_workers_change_no_value(
    dataset_folder: Path, data_section: MakeSection, num_workers: int, start_method: str
) -> None:
    alone = data_section(dataset_folder, **AUGMENTED)
    spread = data_section(dataset_folder, **AUGMENTED, num_workers=num_workers, worker_start_method=start_method)
    wanted = steps_of(PairDataset(alone, "train", seed=1), alone, first_step=5, last_step=10)
    found = steps_of(PairDataset(spread, "train", seed=1), spread, first_step=5, last_step=10)
    assert [step.epoch for step in wanted] == [0, 0, 1, 1, 1]  # 59 pairs make 7 batches of 8
    assert all(equal(a, b) for a, b in zip(wanted, found, strict=True))


class Large:
    """Rows of 40 kB, so that a batch goes through shared memory."""

    fingerprint = "large"

    def __len__(self) -> int:
        return 40

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        return {"sample_id": torch.tensor(row), "pixels": torch.full((200, 200), row, dtype=torch.uint8)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_large_batches_come_whole_and_stay(data_section: MakeSection, num_workers: int) -> None:
    data = data_section(Path("unused"), num_workers=num_workers, prefetch_batches=1)
    batches = [batch for step in steps_of(Large(), data, last_step=10) for batch in step.micro_batches]
    assert sorted(torch.cat([batch["sample_id"] for batch in batches]).tolist()) == sorted([*range(40)] * 2)
    for batch in batches:  # long after all of them were read
        assert torch.equal(batch["pixels"], batch["sample_id"][:, None, None].expand(-1, 200, 200).to(torch.uint8))


def test_columns_are_as_promised(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder)
    (step,) = steps_of(PairDataset(data, "train", seed=1), data, last_step=1)
    assert [len(batch["sample_id"]) for batch in step.micro_batches] == [2, 2, 2, 2]
    assert step.positions == [0, 2, 4, 6]
    columns = {name: (tuple(column.shape), column.dtype) for name, column in step.micro_batches[0].items()}
    assert columns == {
        "pixel_values": ((2, 3, 16, 16), torch.uint8),
        "input_ids": ((2, 6), torch.int64),
        "attention_mask": ((2, 6), torch.int64),
        "image_key": ((2,), torch.int64),
        "text_key": ((2,), torch.int64),
        "sample_id": ((2,), torch.int64),
    }


@pytest.mark.parametrize("last_batch", ["drop", "keep"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_have_the_batches_of_one_process(
    data_section: MakeSection, world_size: int, last_batch: str
) -> None:
    data = data_section(Path("unused"), last_batch=last_batch)
    numbers = Numbers(61)
    order = Order(61, 8, seed=5, last_batch=last_batch)  # type: ignore[arg-type]
    last = order.steps_per_epoch + 2
    shares = [steps_of(numbers, data, rank=r, world_size=world_size, last_step=last) for r in range(world_size)]
    for index, ranks in enumerate(zip(*shares, strict=True)):
        rows = torch.cat([batch["sample_id"] for step in ranks for batch in step.micro_batches])
        assert rows.tolist() == order.rows(index).tolist()
        assert all(batch["epoch"].eq(order.epoch(index)).all() for step in ranks for batch in step.micro_batches)
        assert len({len(step.micro_batches) for step in ranks}) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_a_small_last_batch_leaves_no_micro_batch_empty(
    data_section: MakeSection, world_size: int, micro_batch_size: int
) -> None:
    data = data_section(Path("unused"), micro_batch_size=micro_batch_size, last_batch="keep", num_workers=0)
    ranks = [steps_of(Numbers(13), data, rank=rank, world_size=world_size, last_step=2) for rank in range(world_size)]
    last = [steps[1].micro_batches for steps in ranks]
    assert len({len(micro_batches) for micro_batches in last}) == 1
    sizes = [len(batch["sample_id"]) for micro_batches in last for batch in micro_batches]
    assert min(sizes) >= 1 and max(sizes) <= micro_batch_size + 1
    assert sum(sizes) == 5


def test_a_run_starts_at_any_step(data_section: MakeSection) -> None:
    data = data_section(Path("unused"))
    whole, late = steps_of(Numbers(61), data, last_step=20), steps_of(Numbers(61), data, first_step=13, last_step=20)
    assert all(equal(a, b) for a, b in zip(whole[13:], late, strict=True))
    far = 10**9
    order = Order(10**9, 8, seed=0)
    (step,) = steps_of(Numbers(10**9), data, first_step=far, last_step=far + 1, order=order)
    assert torch.cat([batch["sample_id"] for batch in step.micro_batches]).tolist() == order.rows(far).tolist()


def test_nothing_to_do_gives_no_steps(data_section: MakeSection) -> None:
    assert steps_of(Numbers(61), data_section(Path("unused")), first_step=4, last_step=4) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_samples_are_named_and_left_out(
    damaged_dataset_folder: Path, data_section: MakeSection, num_workers: int
) -> None:
    data = data_section(damaged_dataset_folder, shuffle=False, num_workers=num_workers)
    dataset = PairDataset(data, "train", seed=1)
    order = Order(len(dataset), 8, seed=1, shuffle=False)
    first, second, third = steps_of(dataset, data, order=order)
    assert [batch["sample_id"].tolist() for batch in first.micro_batches] == [[0, 1], [2, 3], [4], [5]]
    assert [batch["sample_id"].tolist() for batch in second.micro_batches] == [[12], [13], [14], [15]]
    assert len(first.unreadable) == 2 and len(second.unreadable) == 4 and not third.unreadable
    assert all("train" in name and "'img3'" in name and "not an image" in name for name in first.unreadable)
    assert first.positions == second.positions == [0, 2, 4, 6]


def test_micro_batches_without_rows_keep_their_columns(data_section: MakeSection) -> None:
    data = data_section(Path("unused"), shuffle=False)
    order = Order(16, 8, seed=1, shuffle=False)
    first, second = steps_of(Numbers(16, unreadable=tuple(range(8))), data, order=order, last_step=2)
    assert [batch["sample_id"].tolist() for batch in first.micro_batches] == [[]] * 4
    assert {name: column.dtype for name, column in first.micro_batches[0].items()} == {
        "sample_id": torch.int64,
        "epoch": torch.int64,
    }
    assert len(first.unreadable) == 8
    assert torch.cat([batch["sample_id"] for batch in second.micro_batches]).tolist() == list(range(8, 16))
    few = steps_of(Numbers(16, unreadable=(0, 1, 2, 3, 4)), data, order=order, last_step=1)[0]
    assert [batch["sample_id"].tolist() for batch in few.micro_batches] == [[5], [6], [7], []]


def test_a_dataset_with_nothing_readable_stops_the_run(data_section: MakeSection) -> None:
    with pytest.raises(UserError, match=r"None of the first .* row 7"):
        steps_of(Numbers(8, unreadable=tuple(range(8))), data_section(Path("unused")), last_step=1)


def test_a_killed_worker_is_a_clear_error(data_section: MakeSection) -> None:
    data = data_section(Path("unused"), num_workers=1)
    with pytest.raises((CheckFailed, RuntimeError), match="worker"):
        steps_of(Numbers(16, fatal=3), data, last_step=2)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), CheckFailed),
        (ConnectionResetError(104, "Connection reset by peer"), CheckFailed),
        (EOFError(), CheckFailed),
        (ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0."), ConnectionResetError),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), RuntimeError),
        (RuntimeError("of another kind"), RuntimeError),
    ],
)
def test_a_worker_that_dies_is_told_from_one_that_raises(
    raised: Exception, expected: type[Exception], data_section: MakeSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be gone while a tensor is being taken over from it, before torch misses it."""

    def fails(*_: object, **__: object) -> Iterator[None]:
        raise raised
        yield

    monkeypatch.setattr("accel_train.data.loader.DataLoader", fails)
    with pytest.raises(expected) as caught:
        steps_of(Numbers(16), data_section(Path("unused"), num_workers=1), last_step=2)
    assert type(caught.value) is expected


def test_signals_to_a_worker_do_not_end_it(data_section: MakeSection) -> None:
    """A scheduler signals every process of a job; the training process still has a step to finish."""
    data = data_section(Path("unused"), num_workers=1, prefetch_batches=1)
    order = Order(61, 8, seed=5)
    steps = train_steps(
        Numbers(61), order, data, rank=0, world_size=1, first_step=0, last_step=5, seed=5, pin_memory=False
    )
    next(steps)
    (worker,) = multiprocessing.active_children()
    for sent in ("USR1", "USR2", "INT", "HUP", "TERM"):
        subprocess.run(["kill", f"-{sent}", str(worker.pid)], check=True)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert not worker.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_a_worker_that_is_just_starting_does_not_end_it(
    number: signal.Signals, data_section: MakeSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun passes SIGTERM to all processes of a rank, and each evaluation starts workers anew."""
    prepare = loader._prepare_worker

    def signalled_before(training_process: int, worker: int) -> None:
        subprocess.run(["kill", f"-{number.value}", str(os.getpid())], check=True)
        prepare(training_process, worker)

    monkeypatch.setattr(loader, "_prepare_worker", signalled_before)
    steps = steps_of(Numbers(61), data_section(Path("unused"), num_workers=1), last_step=3)
    assert [step.step for step in steps] == [0, 1, 2]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(loader.WORKER_SIGNALS), "not in this process"


def test_workers_go_when_the_iterator_is_dropped(data_section: MakeSection) -> None:
    data = data_section(Path("unused"), num_workers=2)
    order = Order(61, 8, seed=5)
    steps = train_steps(
        Numbers(61), order, data, rank=0, world_size=1, first_step=0, last_step=10**9, seed=5, pin_memory=False
    )
    next(steps)
    workers = multiprocessing.active_children()
    began = time.monotonic()
    del steps
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - began < 4  # else they were killed after a timeout


def test_torch_random_state_is_left_alone(data_section: MakeSection) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    steps_of(Numbers(16), data_section(Path("unused")), last_step=1)
    list(evaluation_batches(Numbers(5), rank=0, world_size=1, batch_size=2, num_workers=0))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("length", "world_size"), [(7, 1), (7, 2), (7, 3), (2, 4), (8, 4)])
def test_evaluation_has_each_row_once_and_as_many_batches_on_every_rank(
    length: int, world_size: int, num_workers: int
) -> None:
    ranks = [
        list(evaluation_batches(Numbers(length), rank=r, world_size=world_size, batch_size=2, num_workers=num_workers))
        for r in range(world_size)
    ]
    assert len({tuple(len(batch["row"]) for batch in batches) for batches in ranks}) == 1
    rows = torch.cat([batch["row"] for batches in ranks for batch in batches])
    ids = torch.cat([batch["sample_id"] for batches in ranks for batch in batches])
    assert sorted(rows[rows >= 0].tolist()) == list(range(length))
    assert torch.equal(ids[rows >= 0], rows[rows >= 0])
    assert all(batch["epoch"].eq(-1).all() for batches in ranks for batch in batches)


def test_evaluation_sets_have_their_columns(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder)
    (images,) = evaluation_batches(ImageDataset(data, "valid"), rank=0, world_size=1, batch_size=50, num_workers=0)
    (texts,) = evaluation_batches(TextDataset(data, "valid"), rank=0, world_size=1, batch_size=50, num_workers=0)
    assert {name: tuple(column.shape) for name, column in images.items()} == {
        "pixel_values": (7, 3, 16, 16),
        "sample_id": (7,),
        "row": (7,),
    }
    assert {name: tuple(column.shape) for name, column in texts.items()} == {
        "input_ids": (13, 6),
        "attention_mask": (13, 6),
        "sample_id": (13,),
        "row": (13,),
    }


def test_evaluation_refuses_to_leave_samples_out() -> None:
    with pytest.raises(UserError, match="row 3"):
        list(evaluation_batches(Numbers(5, unreadable=(3,)), rank=0, world_size=1, batch_size=2, num_workers=0))
