"""Nearest rows without comparing all: those of some clusters (an inverted file, built by faiss), kept beside the index.

A graph (HNSW) gives the same share of right results in about half the time, but building it took 77 s for 100,000 rows of
512 numbers where the clusters took 3 s, and all of it must lie in memory: their rows stay on disk until a query comes near.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_train.checkpoint.files import sync
from accel_train.errors import UserError
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.search.nearest import nearest

NUM_SEARCHED = 128
"""Clusters whose rows are compared with a query: those whose centres are nearest to it."""
ROWS_FOR_A_CENTRE = 32
"""Rows of which k-means finds it."""
ROUNDS = 8
"""Of k-means."""
ROWS_AT_ONCE = 65536
NUM_SAMPLED = 100
"""Rows, or queries, that are searched exactly too, to see how many of their results are found."""


class Approximate:
    """Clusters of the rows of `features` (T, D)."""

    def __init__(self, clusters: Any) -> None:
        self._clusters = clusters

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, with most of the same rows; -1 where a query found fewer than k."""
        k = min(k, self._clusters.ntotal)
        self._clusters.nprobe = min(NUM_SEARCHED, self._clusters.nlist)
        scores, rows = self._clusters.search(queries.contiguous().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)


def open_approximate(folder: Path, kind: str, features: Tensor, token: str, *, show_progress: bool) -> Approximate:
    """Opens the clusters of these features, which it finds and writes first if need be. Raises UserError without faiss."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("--approximate needs faiss: pip install 'accel_train[ann]'", code="AT203") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    path = folder / f"{kind}_{token[:32]}.faiss"
    for other in folder.glob(f"{kind}_*.faiss*"):
        if other != path:
            other.unlink()
    if not path.exists():
        clusters = _found(faiss, kind, features, show_progress=show_progress)
        aside = path.with_suffix(".faiss.partial")
        faiss.write_index(clusters, str(aside))
        del clusters
        sync(aside)
        aside.replace(path)
    try:
        clusters = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        bytes_of_rows = clusters.ntotal * (4 * clusters.d + 8)
        if path.stat().st_size < bytes_of_rows:  # a row that is not there would kill the process
            raise RuntimeError("it is shorter than its rows")
        return Approximate(clusters)
    except RuntimeError as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}). Remove it; it is built again.") from error


def _found(faiss: Any, kind: str, features: Tensor, *, show_progress: bool) -> Any:
    """4 √T clusters, so that finding a row's costs about as much as comparing it with the rows of some."""
    num_rows, width = features.shape
    num_clusters = min(num_rows, 4 * math.isqrt(num_rows))
    clusters = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_clusters, faiss.METRIC_INNER_PRODUCT)
    clusters.cp.niter, clusters.cp.spherical = ROUNDS, True
    clusters.cp.min_points_per_centroid, clusters.cp.max_points_per_centroid = 1, ROWS_FOR_A_CENTRE
    chosen = torch.linspace(0, num_rows - 1, min(num_rows, ROWS_FOR_A_CENTRE * num_clusters)).long()
    compared = ROUNDS * len(chosen)  # with all centres, as each row once afterwards
    with RowProgress(f"clusters of {kind}s", compared + num_rows, shown=show_progress) as progress:
        clusters.train(features[chosen].numpy())
        progress.advance(compared)
        for piece in features.split(ROWS_AT_ONCE):
            clusters.add(piece.contiguous().numpy())
            progress.advance(len(piece))
    return clusters


def recall_of(approximate: Approximate, queries: Tensor, features: Tensor, k: int) -> float:
    """Share, 0 to 1, of the k rows of an exact search that the approximate one finds too, over the queries."""
    _, exact = nearest(queries, features, k)
    _, found = approximate.nearest(queries, k)
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean().item()


def sampled(features: Tensor) -> Tensor:
    """Some rows from all over, to be taken as queries."""
    return features[torch.linspace(0, len(features) - 1, min(NUM_SAMPLED, len(features))).long()]
