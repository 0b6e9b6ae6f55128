import pytest
import torch
from torch import Tensor

from accel_train.data.padding import Padding, join, padding_of


def ragged(*lengths: int) -> list[dict[str, Tensor]]:
    """Row k holds k + 1 as often as its length says."""
    return [{"ids": torch.full((1, length), row + 1), "row": torch.tensor([row])} for row, length in enumerate(lengths)]


def test_rows_are_filled_up_to_the_longest() -> None:
    batch = join(ragged(2, 3, 1), Padding({"ids": -7}))
    assert batch["ids"].tolist() == [[1, 1, -7], [2, 2, 2], [3, -7, -7]]
    assert batch["row"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("longest", "length"), [(1, 4), (4, 4), (5, 8)])
def test_lengths_are_rounded_up(longest: int, length: int) -> None:
    batch = join(ragged(1, longest), Padding({"ids": 0}, multiple=4))
    assert batch["ids"].shape == (2, length)
    assert batch["ids"].sum() == 1 + 2 * longest


def test_lengths_are_rounded_up_to_the_limit_at_most() -> None:
    assert join(ragged(1, 5), Padding({"ids": 0}, multiple=4, limit=6))["ids"].shape == (2, 6)


def test_batches_are_joined_like_rows() -> None:
    padding = Padding({"ids": 9})
    rows = ragged(2, 4, 1, 3)
    whole = join(rows, padding)
    assert torch.equal(join([join(rows[:1], padding), join(rows[1:], padding)], padding)["ids"], whole["ids"])


def test_columns_with_more_dimensions_are_filled_along_their_length() -> None:
    pieces = [{"sound": torch.ones(1, 2, 3)}, {"sound": torch.ones(2, 5, 3)}]
    sound = join(pieces, Padding({"sound": 0.5}))["sound"]
    assert sound.shape == (3, 5, 3)
    assert torch.equal(sound[0, 2:], torch.full((3, 3), 0.5))


def test_a_column_that_declares_nothing_must_not_differ() -> None:
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        join(ragged(2, 3), Padding())
    assert join([], Padding()) == {}


def test_what_a_dataset_declares() -> None:
    class Plain:
        fingerprint = ""

        def __len__(self) -> int:
            return 1

        def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
            return {}

    class Ragged(Plain):
        padding = Padding({"ids": 3})

    assert padding_of(Plain()) == Padding()
    assert padding_of(Ragged()) == Padding({"ids": 3})


def test_large_columns_are_joined_in_shared_memory() -> None:
    rows = [torch.randint(255, (1, 3, 200, 200), dtype=torch.uint8) for _ in range(3)]
    pieces = [{"pixels": pixels, "row": torch.tensor([k])} for k, pixels in enumerate(rows)]
    plain, shared = join(pieces, Padding()), join(pieces, Padding(), shared=True)
    assert all(torch.equal(plain[name], shared[name]) for name in plain)
    assert shared["pixels"].is_shared() and shared["pixels"].is_contiguous()
    assert not shared["row"].is_shared() and not plain["pixels"].is_shared()
