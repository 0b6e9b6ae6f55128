"""Nearest rows without comparing all: a graph (HNSW, Malkov and Yashunin 2018) built by faiss, kept beside the index."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_train.errors import UserError
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.search.nearest import nearest

LINKS = 32
"""Of each row to others, M in the paper."""
LOOKED_AT_BUILDING = 100
LOOKED_AT_SEARCHING = 128
"""Rows that are kept in view for a query; at least four times as many as are wanted."""
ROWS_AT_ONCE = 4096
NUM_SAMPLED = 100
"""Rows, or queries, that are searched exactly too, to see how many of their results are found."""


class Approximate:
    """A graph over the rows of `features` (T, D)."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, with most of the same rows; -1 where a query found fewer than k."""
        k = min(k, self._graph.ntotal)
        self._graph.hnsw.efSearch = max(LOOKED_AT_SEARCHING, 4 * k)
        scores, rows = self._graph.search(queries.contiguous().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)


def open_approximate(folder: Path, kind: str, features: Tensor, token: str, *, show_progress: bool) -> Approximate:
    """Reads the graph of these features, or builds it and writes it into the folder. Raises UserError without faiss."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("--approximate needs faiss: pip install 'accel_train[ann]'", code="AT203") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    path = folder / f"{kind}_{token[:32]}.faiss"
    for other in folder.glob(f"{kind}_*.faiss*"):
        if other != path:
            other.unlink()
    if path.exists():
        try:
            graph = faiss.read_index(str(path))
        except RuntimeError as error:
            raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}). Remove it; it is built again.") from error
        return Approximate(graph)
    graph = faiss.IndexHNSWFlat(features.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = LOOKED_AT_BUILDING
    with RowProgress(f"graph of {kind}s", len(features), done=0, shown=show_progress) as progress:
        for start in range(0, len(features), ROWS_AT_ONCE):
            piece = features[start : start + ROWS_AT_ONCE]
            graph.add(piece.contiguous().numpy())
            progress.advance(len(piece))
    aside = path.with_suffix(".faiss.partial")
    faiss.write_index(graph, str(aside))
    aside.replace(path)
    return Approximate(graph)


def recall_of(approximate: Approximate, queries: Tensor, features: Tensor, k: int) -> float:
    """Share, 0 to 1, of the k rows of an exact search that the approximate one finds too, over the queries."""
    _, exact = nearest(queries, features, k)
    _, found = approximate.nearest(queries, k)
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean().item()


def sampled(features: Tensor) -> Tensor:
    """Some rows from all over, to be taken as queries."""
    return features[torch.linspace(0, len(features) - 1, min(NUM_SAMPLED, len(features))).long()]
