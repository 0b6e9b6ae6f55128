"""Correlations of predicted scores with ratings: Pearson (PLCC), Spearman (SROCC), Kendall's tau-b (KROCC).

Ties are handled as scipy does. A correlation with a constant is not defined; here it is 0, which is what predicting the same
for everything is worth.
"""

import torch
from torch import Tensor


def pearson(x: Tensor, y: Tensor) -> float:
    """Linear correlation of two (n,) tensors, -1 to 1."""
    _check(x, y)
    if _is_constant(x) or _is_constant(y):
        return 0.0
    x, y = _standardised(x), _standardised(y)
    return float((x @ y).clamp(-1, 1))


def spearman(x: Tensor, y: Tensor) -> float:
    """Linear correlation of the ranks; equal values share the mean of their ranks."""
    _check(x, y)
    return pearson(average_ranks(x), average_ranks(y))


def kendall(x: Tensor, y: Tensor) -> float:
    """Tau-b: (P - Q) / sqrt((n0 - n1) (n0 - n2)) with P concordant and Q discordant pairs, n0 = n (n - 1) / 2, and n1, n2
    the pairs tied in x and in y (Kendall 1945). O(n log^2 n): discordant pairs are inversions after sorting (Knight 1966).
    """
    _check(x, y)
    if _is_constant(x) or _is_constant(y):
        return 0.0
    x, y = _dense_ranks(x), _dense_ranks(y)
    joint = x * len(y) + y
    num_pairs = len(x) * (len(x) - 1) // 2
    tied_x, tied_y, tied_both = (_tied_pairs(ranks) for ranks in (x, y, joint))
    discordant = count_inversions(y[joint.argsort()])
    concordant = num_pairs - tied_x - tied_y + tied_both - discordant
    return (concordant - discordant) / ((num_pairs - tied_x) ** 0.5 * (num_pairs - tied_y) ** 0.5)


def average_ranks(values: Tensor) -> Tensor:
    """(n,) to ranks from 1 in fp64; equal values share the mean of theirs."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


def count_inversions(values: Tensor) -> int:
    """Pairs i < j with values[i] > values[j], of (n,) integers: a merge sort from the bottom up, all blocks of a level at
    once."""
    count, size = 0, 1
    length = 1 << max(len(values) - 1, 0).bit_length()
    top = int(values.max()) + 1 if len(values) else 0
    padded = torch.full((length,), top, dtype=torch.int64)  # at the end and not smaller than anything: in no inversion
    padded[: len(values)] = values
    while size < length:
        left, right = padded.view(-1, 2, size).unbind(1)
        not_greater = torch.searchsorted(left.contiguous(), right.contiguous(), right=True)
        count += int((size - not_greater).sum())
        size *= 2
        padded = padded.view(-1, size).sort(1).values.flatten()
    return count


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"need two equally long rows of at least 2 values, found {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("values hold NaN or infinite ones")


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _standardised(values: Tensor) -> Tensor:
    """Mean 0 and length 1, in fp64. Scaled first, so that tiny and huge values neither vanish nor overflow."""
    values = values.double() - values.double().mean()
    values = values / values.abs().max()
    return values / values.norm()


def _dense_ranks(values: Tensor) -> Tensor:
    ranks: Tensor = values.unique(return_inverse=True)[1]
    return ranks


def _tied_pairs(values: Tensor) -> int:
    counts = values.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
