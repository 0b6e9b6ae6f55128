import itertools

import pytest
import torch

from accel_train.losses.positives import Positives, Sharing

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_keys", [1, 5, 40, 10_000])
def test_pairs_are_those_of_the_mask(num_keys: int) -> None:
    rows = 37
    generator = torch.Generator().manual_seed(num_keys)
    image, text = torch.randint(num_keys, (2, rows), generator=generator)
    mask = (image[:, None] == image) | (text[:, None] == text)
    positives = Positives.of("shared", image, text, CPU)
    for start, stop in ((0, rows), (0, 5), (11, 30), (36, 37)):
        row, column = positives.pairs(start, stop)
        found = torch.zeros(stop - start, rows, dtype=torch.int64)
        found.index_put_((row, column), torch.ones_like(row), accumulate=True)
        assert torch.equal(found, mask[start:stop].long())


@pytest.mark.parametrize("num_keys", [1, 5, 40, 10_000])
@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_pairs_with_some_columns_are_a_part_of_the_mask(sharing: Sharing, num_keys: int) -> None:
    rows = 23
    image, text = torch.randint(num_keys, (2, rows), generator=torch.Generator().manual_seed(num_keys))
    mask = torch.eye(rows).bool()
    if sharing == "shared":
        mask |= (image[:, None] == image) | (text[:, None] == text)
    positives = Positives.of(sharing, image, text, CPU)
    for (start, stop), (left, right) in itertools.product([(0, rows), (0, 5), (11, 20), (7, 7)], repeat=2):
        row, column = positives.pairs(start, stop, (left, right))
        found = torch.zeros(stop - start, right - left, dtype=torch.int64)
        found.index_put_((row, column), torch.ones_like(row), accumulate=True)
        assert torch.equal(found, mask[start:stop, left:right].long())


def test_own_positives_are_the_diagonal() -> None:
    row, column = Positives.of("own", None, None, CPU).pairs(4, 7)
    assert (row.tolist(), column.tolist()) == ([0, 1, 2], [4, 5, 6])
