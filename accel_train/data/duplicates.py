"""How often two samples of a dataset hold the same image or the same text."""

from itertools import combinations

import numpy as np
import numpy.typing as npt


def chance_of_a_duplicate(*keys: npt.NDArray[np.int64]) -> float:
    """Probability that two different rows, drawn at random, are equal in at least one of the keys, each of shape (rows,).

    Counted exactly: pairs equal in one key, less those equal in two, and so on (inclusion and exclusion).
    """
    num_rows = len(keys[0])
    if num_rows < 2:
        return 0.0
    pairs = 0
    for size in range(1, len(keys) + 1):
        sign = 1 if size % 2 else -1
        pairs += sign * sum(_equal_pairs(np.stack(chosen, axis=1)) for chosen in combinations(keys, size))
    return pairs / (num_rows * (num_rows - 1) // 2)


def _equal_pairs(rows: npt.NDArray[np.int64]) -> int:
    """Pairs of rows that are equal in every column."""
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())
