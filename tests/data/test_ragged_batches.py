"""The loader with samples of different length."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from accel_train.config.contrastive import PairData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.loader import Step, evaluation_batches, train_steps
from accel_train.data.order import Buckets, Order
from accel_train.data.padding import Padding

MakeSection = Callable[..., PairData]
LENGTHS = np.array([1 + row * 7 % 11 for row in range(61)], np.int32)


class Ragged:
    """Row k is k + 1, `LENGTHS[k]` times. Some rows can't be read."""

    fingerprint = "ragged"
    padding = Padding({"ids": 0}, multiple=2)

    def __init__(self, unreadable: tuple[int, ...] = ()) -> None:
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(LENGTHS)

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        if row in self.unreadable:
            raise UnreadableSample(f"row {row}")
        return {"ids": torch.full((int(LENGTHS[row]),), row + 1), "sample_id": torch.tensor(row)}


def steps_of(dataset: Ragged, data: PairData, *, rank: int = 0, world_size: int = 1, num_steps: int = 9) -> list[Step]:
    order = Order(61, 8, seed=5, last_batch=data.last_batch, buckets=Buckets(LENGTHS, 3))
    steps = train_steps(
        dataset,
        order,
        data,
        rank=rank,
        world_size=world_size,
        first_step=0,
        last_step=num_steps,
        seed=5,
        pin_memory=False,
    )
    return list(steps)


def assert_padded(batch: dict[str, Tensor]) -> None:
    lengths = LENGTHS[batch["sample_id"].numpy()]
    assert batch["ids"].shape[1] == -(-lengths.max() // 2) * 2
    for row, ids in zip(batch["sample_id"].tolist(), batch["ids"], strict=True):
        assert ids.tolist() == [row + 1] * LENGTHS[row] + [0] * (len(ids) - LENGTHS[row])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_micro_batches_are_padded_to_their_own_longest(data_section: MakeSection, num_workers: int) -> None:
    data = data_section(Path("unused"), num_workers=num_workers)
    widths = set()
    for step in steps_of(Ragged(), data):
        for batch in step.micro_batches:
            assert_padded(batch)
            widths.add(batch["ids"].shape[1])
    assert len(widths) > 2


@pytest.mark.parametrize("last_batch", ["drop", "keep"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_have_the_batches_of_the_order(
    data_section: MakeSection, world_size: int, last_batch: str
) -> None:
    """Neighbouring micro-batches lie on neighbouring ranks, and positions say where each one starts."""
    data = data_section(Path("unused"), last_batch=last_batch)
    order = Order(61, 8, seed=5, last_batch=last_batch, buckets=Buckets(LENGTHS, 3))  # type: ignore[arg-type]
    shares = [steps_of(Ragged(), data, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index, ranks in enumerate(zip(*shares, strict=True)):
        pieces = [
            (position, batch["sample_id"].tolist())
            for step in ranks
            for position, batch in zip(step.positions, step.micro_batches, strict=True)
        ]
        rows = order.rows(index).tolist()
        assert all(found == rows[position : position + len(found)] for position, found in pieces)
        assert [row for _, found in sorted(pieces) for row in found] == rows


def test_rows_of_an_empty_micro_batch_are_shared_out_again(data_section: MakeSection) -> None:
    """Micro-batches that are joined for it have different widths."""
    data = data_section(Path("unused"))
    first = Order(61, 8, seed=5, buckets=Buckets(LENGTHS, 3)).rows(0).tolist()
    (step,) = steps_of(Ragged(unreadable=tuple(first[:2])), data, num_steps=1)
    assert [len(batch["sample_id"]) for batch in step.micro_batches] == [2, 2, 1, 1]
    assert [row for batch in step.micro_batches for row in batch["sample_id"].tolist()] == first[2:]
    for batch in step.micro_batches:
        for row, ids in zip(batch["sample_id"].tolist(), batch["ids"], strict=True):
            assert ids[ids > 0].tolist() == [row + 1] * LENGTHS[row]


def test_evaluation_pads_too() -> None:
    seen = []
    for batch in evaluation_batches(Ragged(), rank=0, world_size=2, batch_size=4, num_workers=0):
        assert_padded(batch)
        seen += batch["row"].tolist()
    assert seen == list(range(31))
