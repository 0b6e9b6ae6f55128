"""The data path beside torchvision on Pillow, sources in place beside Arrow, and a late start beside a fresh one."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from accel_train.config.schema import DataSection
from accel_train.data.loader import train_steps
from accel_train.data.order import Order
from accel_train.tools.bench.figures import Figure, in_turns, ratio_figure
from accel_train.tools.bench.image_rates import (
    arrow_images,
    batch_of_ours,
    batch_of_torchvision,
    cpu_seconds_in_turns,
    lmdb_images,
    photographs,
    tsv_images,
)
from tests.benchmarks import long_run
from tests.distributed.ranks import run_ranks

Record = Callable[[Figure], None]


@pytest.mark.parametrize(("width", "goal"), [(336, 2.0), (500, 2.0), (1600, 3.0)])
def test_images_a_cpu_second(record: Record, tmp_path: Path, width: int, goal: float) -> None:
    encoded = photographs(width)
    images = arrow_images(tmp_path, encoded)
    ways = {
        "torchvision": lambda: batch_of_torchvision(encoded, 224),
        "fast": lambda: batch_of_ours(images, 224, "fast"),
        "exact": lambda: batch_of_ours(images, 224, "exact"),
    }
    seconds = cpu_seconds_in_turns(ways, rounds=9 if width > 1000 else 25)
    for decoding, wanted in (("fast", goal), ("exact", None)):
        how = (
            f"images a CPU-second with data.decoding {decoding} over those of a stand-in for torchvision on Pillow: JPEGs "
            f"of {width} x {width * 3 // 4} at quality 90, crop of 0.9 to 1.0, flip, to 224, batches of 16"
        )
        record(
            ratio_figure(
                f"data/{decoding}_{width}_to_torchvision",
                seconds["torchvision"],
                seconds[decoding],
                goal=wanted,
                how=how,
            )
        )


def test_sources_in_place(record: Record, tmp_path: Path) -> None:
    encoded = photographs(500)
    stored = {"arrow": arrow_images, "tsv": tsv_images, "lmdb": lmdb_images}
    images = {name: store(tmp_path / name, encoded) for name, store in stored.items()}
    ways = {name: lambda rows=rows: batch_of_ours(rows, 224, "fast") for name, rows in images.items()}
    seconds = cpu_seconds_in_turns(ways, rounds=25)
    for name, shown in (("tsv", "TSV"), ("lmdb", "LMDB")):
        how = f"CPU-seconds of images of 500 x 375 read in place from {shown} over those from Arrow, data.decoding fast"
        record(
            ratio_figure(f"data/{name}_to_arrow", seconds[name], seconds["arrow"], goal=1.1, better="lower", how=how)
        )


class Numbers:
    """A dataset of any length whose row k is the number k."""

    fingerprint = "numbers"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, row: int, epoch: int | None) -> dict[str, torch.Tensor]:
        return {"sample_id": torch.tensor(row)}


def test_first_batch_of_a_late_step(record: Record) -> None:
    data = DataSection(path="none", global_batch_size=512, micro_batch_size=64, num_workers=0)

    def first_batch(step: int) -> object:
        dataset = Numbers(10**9)
        order = Order(len(dataset), data.global_batch_size, seed=0)
        steps = train_steps(
            dataset, order, data, rank=0, world_size=1, first_step=step, last_step=step + 1, seed=0, pin_memory=False
        )
        return next(steps)

    seconds = in_turns({"fresh": lambda: first_batch(0), "late": lambda: first_batch(10**6)}, rounds=25)
    how = "time to the first global batch of 512 at step 10^6 over that at step 0, of 10^9 rows"
    record(
        ratio_figure("start/late_to_fresh_batch", seconds["late"], seconds["fresh"], goal=1.1, better="lower", how=how)
    )


def test_first_step_of_a_long_run(record: Record, tmp_path: Path) -> None:
    """Whole processes: the late one reads a checkpoint, and the ends of two files of a million lines."""
    long_run.make_long_run(tmp_path / "late")
    fresh_runs = (tmp_path / f"fresh_{number}" for number in count())

    def start(run_dir: Path, taken: int) -> None:
        (done,) = run_ranks(1, "-m", "tests.benchmarks.long_run", str(run_dir))
        assert done.output.split()[-1] == str(taken), done.output

    ways = {
        "fresh": lambda: start(next(fresh_runs), 1),
        "late": lambda: start(tmp_path / "late", long_run.STEPS + 1),
    }
    seconds = in_turns(ways, rounds=4)
    how = (
        "time from the start of a process to the end of its first step, resumed at step 10^6 over fresh: 10^9 rows, metrics "
        "and ledger of 10^6 lines"
    )
    record(ratio_figure("start/late_to_fresh", seconds["late"], seconds["fresh"], goal=1.1, better="lower", how=how))
