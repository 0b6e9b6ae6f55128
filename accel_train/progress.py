"""Throughput, and how a step and its scores are put into words."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from accel_train.visible import visible

Item = TypeVar("Item")


class Meter:
    """Samples per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    def waiting_for(self, items: Iterator[Item]) -> Iterator[Item]:
        """Passes items through and counts the time each one was waited for."""
        while True:
            asked = time.perf_counter()
            item = next(items, None)
            self._waited += time.perf_counter() - asked
            if item is None:
                return
            yield item

    def count(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        """Readings of this rank; throughput is of all ranks together."""
        elapsed = time.perf_counter() - self._started
        reading = {
            "samples_per_second": self._samples / elapsed,
            "waiting_for_data": self._waited / elapsed,
            "memory_gib": peak_memory_gib(self.device),
        }
        self.restart()
        return reading


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this rank: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def step_summary(step: int, total_steps: int, epoch: int, values: dict[str, float]) -> str:
    """One line for a log step."""
    parts = [
        f"step {step}/{total_steps}",
        f"epoch {epoch}",
        f"loss {values['loss']:.4f}",
        f"grad_norm {values['grad_norm']:.3g}",
    ]
    if "temperature" in values:
        parts.append(f"temperature {values['temperature']:.4f}")
    parts.append(f"{values['samples_per_second']:.1f} samples/s")
    parts.append(f"waiting for data {values['waiting_for_data']:.0%}")
    return "  ".join(parts)


def score_table(scores: dict[str, float], title: str) -> Group:
    """Scores in percent. `a_recall@1`, `a_recall@5`, ... become columns of a row `a`; other scores get rows of their own.

    A `loss` among them comes last, as it is.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        if name == "loss":
            continue
        subject, at, k = name.partition("_recall@")
        mean_of = name.removesuffix("_mean_recall")
        if at:
            rows.setdefault(subject, {})[f"R@{k}"] = value
        elif mean_of != name or name == "mean_recall":
            mean_of = mean_of if mean_of != name else "both ways"
            rows.setdefault(mean_of, {})["mean recall"] = value
        else:
            rows.setdefault(name, {})["value"] = value
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table()
    table.add_column("score, %")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(
            name.replace("_", " "), *(f"{100 * row[column]:.1f}" if column in row else "" for column in columns)
        )
    if "loss" in scores:
        table.add_row("loss (no share)", f"{scores['loss']:.4f}")
    # Not the table's own title, which is broken at the table's width, in the middle of a path.
    return Group(Text(visible(title), style="bold"), table)
