"""Recall of retrieval between two sets with many-to-many matches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ROUNDING = 8
"""Similarities closer than this many units of float32's rounding count as equal: the features of one and the same caption
differ by as much when it is encoded beside others, on another number of ranks for example."""


def recall_at(
    query_features: Tensor,
    target_features: Tensor,
    matches: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 512,
) -> dict[int, float]:
    """Share of queries, 0 to 1, with at least one of their matches among the k most similar targets.

    Arguments and errors as in `match_ranks`.
    """
    return _shares(match_ranks(query_features, target_features, matches, chunk_size=chunk_size), ks)


def recall_both_ways(
    first_features: Tensor,
    second_features: Tensor,
    matches: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 512,
) -> tuple[dict[int, float], dict[int, float]]:
    """`recall_at` of the first features among the second, and of the second among the first, from one set of similarities.

    matches (M, 2) holds rows (first, second). A row without a match is no query, but stays among the targets of the other
    side. Raises ValueError if nothing matches, and for features that aren't finite.
    """
    if not len(matches):
        raise ValueError("there are no matches")
    matches = _sorted_matches(first_features, second_features, matches)
    ranks = _ranks_both_ways(first_features, second_features, matches, chunk_size)
    of_first, of_second = (_shares(ranks[side][matches[:, side].unique()], ks) for side in (0, 1))
    return of_first, of_second


def match_ranks(query_features: Tensor, target_features: Tensor, matches: Tensor, *, chunk_size: int = 512) -> Tensor:
    """For each query, how many targets that don't match it are at least as similar as its best match, (Q,) int64.

    query_features (Q, D) and target_features (T, D) are compared by inner product; matches (M, 2) holds rows
    (query, target), any number for each query. A target as similar as the best match counts as more similar, so equal
    features can't score. At most chunk_size x chunk_size similarities exist at once. Raises ValueError for a query without
    a match and for features that aren't finite. As similar means: up to what rounding does to features (ROUNDING).
    """
    matches = _sorted_matches(query_features, target_features, matches)
    without = (torch.bincount(matches[:, 0], minlength=len(query_features)) == 0).nonzero().flatten()
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(query_features)} queries have no match, the first is query {int(without[0])}"
        )
    return _ranks_both_ways(query_features, target_features, matches, chunk_size)[0]


def _sorted_matches(first: Tensor, second: Tensor, matches: Tensor) -> Tensor:
    """Each match once, in order. Raises ValueError for features that aren't finite: a comparison with NaN counts nothing."""
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("features hold NaN or infinite values")
    matches = matches.to(first.device)
    keys = (matches[:, 0] * len(second) + matches[:, 1]).unique()
    return torch.stack([keys // len(second), keys % len(second)], 1)


@torch.no_grad()
def _ranks_both_ways(first: Tensor, second: Tensor, matches: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """What `match_ranks` gives for each side, (Q,) and (T,); for a row without a match the size of the other side.

    Similarities come in square tiles. How similar the best matches are must be known before anything is counted: the tiles
    with matches are made first, and again with the others. Putting `second` into the order of its matches gathers those
    along the diagonal, where they are few.
    """
    size = len(first), len(second)
    rows = matches[:, 0]
    nearest = rows.new_full((size[1],), size[0]).scatter_reduce(0, matches[:, 1], rows, "amin")
    order = nearest.argsort(stable=True)
    second, columns = second[order], order.argsort()[matches[:, 1]]
    tiles = _Tiles(first, second, rows, columns, chunk_size)
    scores = first.new_empty(len(matches))
    for place, held in tiles.with_matches():
        scores[held] = tiles.similarities(*place)[tiles.inside(held)]
    best = [
        scores.new_full((length,), float("-inf")).scatter_reduce(0, index, scores, "amax") - rounding
        for length, index, rounding in zip(size, (rows, columns), _rounding(first, second), strict=True)
    ]
    ranks = [torch.zeros(length, dtype=torch.int64, device=first.device) for length in size]
    for i in range(0, size[0], chunk_size):
        for j in range(0, size[1], chunk_size):
            similarities, part = tiles.similarities(i, j), (slice(i, i + chunk_size), slice(j, j + chunk_size))
            similarities[tiles.inside(tiles.held(i, j))] = float("-inf")
            # As floats, whose sums are vectorised; they are exact up to 2^24.
            for side, shape in ((0, (-1, 1)), (1, (1, -1))):
                ahead = torch.ge(similarities, best[side][part[side]].view(shape), out=tiles.comparison(similarities))
                ranks[side][part[side]] += ahead.sum(1 - side).long()
    return ranks[0], torch.empty_like(ranks[1]).scatter_(0, order, ranks[1])


def _rounding(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How far similarities of each row may lie apart and still count as equal, (Q,) and (T,)."""
    lengths = first.norm(dim=1), second.norm(dim=1)
    unit = ROUNDING * min(torch.finfo(torch.float32).eps, torch.finfo(first.dtype).eps)
    return unit * lengths[0] * lengths[1].max(), unit * lengths[1] * lengths[0].max()


class _Tiles:
    """The similarities of two sets of features, chunk_size x chunk_size at a time, and the matches in each tile."""

    def __init__(self, first: Tensor, second: Tensor, rows: Tensor, columns: Tensor, chunk_size: int) -> None:
        self._first, self._second, self._chunk = first, second, chunk_size
        self._rows, self._columns = rows, columns
        length = min(chunk_size, len(first)) * min(chunk_size, len(second))
        self._similarities, self._comparison = first.new_empty(length), first.new_empty(length, dtype=torch.float32)
        tiles = rows // chunk_size * (len(second) // chunk_size + 1) + columns // chunk_size
        by_tile = tiles.argsort(stable=True)
        self._held = {
            (int(rows[held[0]]) // chunk_size * chunk_size, int(columns[held[0]]) // chunk_size * chunk_size): held
            for held in by_tile.split(tiles.unique(return_counts=True)[1].tolist())
        }
        self._none = by_tile[:0]

    def with_matches(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """(first row, first column) of the tiles that hold matches, and the numbers of those."""
        return iter(self._held.items())

    def held(self, i: int, j: int) -> Tensor:
        """Numbers of the matches in a tile."""
        return self._held.get((i, j), self._none)

    def inside(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """Places of matches within their tile."""
        return self._rows[held] % self._chunk, self._columns[held] % self._chunk

    def similarities(self, i: int, j: int) -> Tensor:
        """A tile; the next one takes its memory."""
        first, second = self._first[i : i + self._chunk], self._second[j : j + self._chunk]
        shape = len(first), len(second)
        return torch.mm(first, second.T, out=self._similarities[: shape[0] * shape[1]].view(shape))

    def comparison(self, similarities: Tensor) -> Tensor:
        """Memory for zeros and ones of a tile; the next one takes it too."""
        return self._comparison[: similarities.numel()].view(similarities.shape)


def _shares(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return {k: (ranks < k).double().mean().item() for k in ks}


def in_batch_accuracy(query_features: Tensor, target_features: Tensor, *, chunk_size: int = 1024) -> float:
    """Share of rows, 0 to 1, whose own partner is more similar than every other row's.

    Not recall: a batch is far smaller than a split, and rows that show the same image or say the same text count as wrong.
    NaN counts as wrong.
    """
    num_right = 0
    for start in range(0, len(query_features), chunk_size):
        scores = query_features[start : start + chunk_size] @ target_features.T
        own = scores.diagonal(start)[:, None]
        num_right += int(((scores >= own).sum(1) == 1).sum())
    return num_right / len(query_features)
