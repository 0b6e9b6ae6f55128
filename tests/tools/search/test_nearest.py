"""Exact search is what sorting all similarities gives, however it is cut up."""

import numpy as np
import pytest
import torch
from torch import Tensor

from accel_train.tools.search.nearest import nearest


def naive(queries: Tensor, targets: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity = queries.numpy() @ targets.numpy().T
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


@pytest.mark.parametrize(("chunk_queries", "chunk_targets"), [(256, 65536), (1, 1), (3, 7), (5, 50), (2, 10)])
@pytest.mark.parametrize("k", [1, 10, 50, 80])
def test_rows_and_scores_are_those_of_a_full_sort(chunk_queries: int, chunk_targets: int, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    queries = torch.randn(7, 16, generator=generator)
    targets = torch.randn(50, 16, generator=generator)
    scores, rows = nearest(queries, targets, k, chunk_queries=chunk_queries, chunk_targets=chunk_targets)
    wanted_scores, wanted_rows = naive(queries, targets, k)
    assert scores.shape == rows.shape == (7, min(k, 50))
    assert np.array_equal(rows.numpy(), wanted_rows)
    np.testing.assert_allclose(scores.numpy(), wanted_scores, atol=1e-5)


def test_of_equal_scores_the_earlier_row_comes_first() -> None:
    targets = torch.eye(4).repeat(3, 1)
    _, rows = nearest(torch.eye(4)[:1], targets, 12, chunk_targets=5)
    assert rows.tolist() == [[0, 4, 8, 1, 2, 3, 5, 6, 7, 9, 10, 11]]


def test_never_all_similarities_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    topk = Tensor.topk

    def seen(similarity: Tensor, k: int) -> object:
        sizes.append(similarity.numel())
        return topk(similarity, k)

    monkeypatch.setattr(Tensor, "topk", seen)
    nearest(torch.randn(100, 4), torch.randn(1000, 4), 5, chunk_queries=10, chunk_targets=100)
    assert len(sizes) == 100
    assert max(sizes) == 1000
