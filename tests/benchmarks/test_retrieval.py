"""Recall over 30,000 x 30,000 features."""

import multiprocessing
import os
import time
from collections.abc import Callable

import torch

from accel_train.metrics.retrieval import recall_both_ways
from accel_train.tools.bench.checkpoint_costs import extra_memory
from accel_train.tools.bench.figures import Figure

NUM, WIDTH = 30_000, 512


def test_recall(record: Callable[[Figure], None]) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        cores, seconds, gibibytes = pool.apply(_measured)
    what = f"recall both ways over {NUM:,} x {NUM:,} features of {WIDTH}, in a process of its own on {cores} cores"
    record(Figure("evaluation/recall_seconds", seconds, 0.0, 10.0, what, "lower", "s"))
    record(
        Figure("evaluation/recall_memory", gibibytes, 0.0, 0.93, f"memory beside the features: {what}", "lower", "GiB")
    )


def _measured() -> tuple[int, float, float]:
    """Cores, seconds, and GiB beside the features at most. Watching memory takes time: that call is another one."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)  # whatever OMP_NUM_THREADS says
    features = [torch.nn.functional.normalize(torch.randn(NUM, WIDTH), dim=1) for _ in range(2)]
    matches = torch.arange(NUM)[:, None].expand(-1, 2)
    with extra_memory() as extra:
        recall_both_ways(*features, matches)
    start = time.perf_counter()
    recall_both_ways(*features, matches)
    return cores, time.perf_counter() - start, extra[0] / 2**30
