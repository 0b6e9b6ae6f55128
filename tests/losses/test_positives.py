import pytest
import torch

from accel_train.losses.positives import Positives

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


def test_own_positives_are_the_diagonal() -> None:
    row, column = Positives.of("own", None, None, CPU).pairs(4, 7)
    assert (row.tolist(), column.tolist()) == ([0, 1, 2], [4, 5, 6])
