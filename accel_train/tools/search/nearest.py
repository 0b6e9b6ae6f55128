"""The most similar rows, exactly: every row is compared, a piece at a time."""

import torch
from torch import Tensor

CHUNK_QUERIES = 256
CHUNK_TARGETS = 65536


def nearest(
    queries: Tensor, targets: Tensor, k: int, *, chunk_queries: int = CHUNK_QUERIES, chunk_targets: int = CHUNK_TARGETS
) -> tuple[Tensor, Tensor]:
    """For each query the k targets of largest inner product: scores and rows, both (Q, min(k, T)), best first.

    queries (Q, D), targets (T, D). Of equal scores the earlier row comes first. At most chunk_queries x chunk_targets
    similarities exist at once.
    """
    k = min(k, len(targets))
    scores, rows = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), chunk_queries):
        part = slice(start, start + chunk_queries)
        scores[part], rows[part] = _nearest(queries[part], targets, k, chunk_targets)
    return scores, rows


def _nearest(queries: Tensor, targets: Tensor, k: int, chunk_targets: int) -> tuple[Tensor, Tensor]:
    best, places = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(targets), chunk_targets):
        similarity = queries @ targets[start : start + chunk_targets].T
        found = similarity.topk(min(k, similarity.shape[1]))
        best = torch.cat([best, found.values], dim=1)
        places = torch.cat([places, found.indices + start], dim=1)
        best, places = _sorted(best, places, k)
    return best, places


def _sorted(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k by falling score; the sort by score is stable, so of equal ones the lower row stays in front."""
    by_row = rows.argsort(dim=1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, by_score), rows.gather(1, by_score)
