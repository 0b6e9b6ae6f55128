"""Recall of retrieval between two sets with many-to-many matches."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at(
    query_features: Tensor,
    target_features: Tensor,
    matches: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
) -> dict[int, float]:
    """Share of queries, 0 to 1, with at least one of their matches among the k most similar targets.

    Arguments and errors as in `match_ranks`.
    """
    rank = match_ranks(query_features, target_features, matches, chunk_size=chunk_size)
    return {k: (rank < k).double().mean().item() for k in ks}


def match_ranks(query_features: Tensor, target_features: Tensor, matches: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """For each query, how many targets that don't match it are at least as similar as its best match, (Q,) int64.

    query_features (Q, D) and target_features (T, D) are compared by inner product; matches (M, 2) holds rows
    (query, target), any number for each query. A target as similar as the best match counts as more similar, so equal
    features can't score. At most chunk_size x T similarities exist at once. Raises ValueError for a query without a match
    and for features that aren't finite.
    """
    if not (query_features.isfinite().all() and target_features.isfinite().all()):
        raise ValueError("features hold NaN or infinite values")
    num_queries = len(query_features)
    matches = matches[matches[:, 0].argsort(stable=True)].to(query_features.device)
    first_match = torch.searchsorted(matches[:, 0].contiguous(), torch.arange(num_queries + 1, device=matches.device))
    without = (first_match.diff() == 0).nonzero().flatten()
    if len(without):
        raise ValueError(f"{len(without)} of {num_queries} queries have no match, the first is query {int(without[0])}")
    ranks = []
    for start in range(0, num_queries, chunk_size):
        stop = min(start + chunk_size, num_queries)
        chunk_matches = matches[first_match[start] : first_match[stop]]
        scores = query_features[start:stop] @ target_features.T
        ranks.append(_ranks(scores, chunk_matches[:, 0] - start, chunk_matches[:, 1]))
    return torch.cat(ranks)


def _ranks(scores: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
    """For each row of scores (n, T): how many targets that don't match are at least as similar as its best match."""
    matched = scores[queries, targets]
    best = scores.new_full((len(scores),), float("-inf")).scatter_reduce(0, queries, matched, "amax")
    ahead = scores >= best[:, None]
    ahead[queries, targets] = False
    return ahead.sum(1)


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
