"""Recall over 30,000 x 30,000 features."""

import multiprocessing
import resource
import time
from collections.abc import Callable

import torch

from accel_train.metrics.retrieval import recall_both_ways
from accel_train.tools.bench.figures import Figure

NUM, WIDTH = 30_000, 512


def test_recall(record: Callable[[Figure], None]) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, gibibytes = pool.apply(_measured)
    what = f"recall both ways over {NUM:,} x {NUM:,} features of {WIDTH}, in a process of its own on all cores"
    record(Figure("evaluation/recall_seconds", seconds, 0.0, 10.0, what, "lower", "s"))
    record(
        Figure("evaluation/recall_memory", gibibytes, 0.0, 0.93, f"memory beside the features: {what}", "lower", "GiB")
    )


def _measured() -> tuple[float, float]:
    features = [torch.nn.functional.normalize(torch.randn(NUM, WIDTH), dim=1) for _ in range(2)]
    matches = torch.arange(NUM)[:, None].expand(-1, 2)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    recall_both_ways(*features, matches)
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
