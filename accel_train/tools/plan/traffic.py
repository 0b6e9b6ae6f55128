"""What ranks send each other in one step, by engine: collectives with their sizes, and what can hide them."""

from dataclasses import dataclass
from typing import Literal

from accel_train.engine.buffers import REDUCE_BUCKET
from accel_train.tools.dry_run.reduction import FLOAT_BYTES
from accel_train.tools.dry_run.step import DryStep

DDP_BUCKET = 25 * 2**20
"""DistributedDataParallel's bucket_cap_mb, in bytes."""
AGREEMENTS = 4
"""Small reductions in every step: counts, flags, norms and losses."""

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]


@dataclass(frozen=True, slots=True)
class Collective:
    what: str
    """gradients, weights, features or agreement."""
    kind: Kind
    num_bytes: int
    """Of the whole tensor: what is reduced, what all ranks hold together, or what each rank sends to the next one."""
    count: int
    """How often in a step."""
    hidden_by: str | None = None
    """The phase that computes at the same time on a GPU; None: everything waits."""


def traffic(dry: DryStep) -> list[Collective]:
    """For two or more ranks; the sizes don't depend on their number, apart from the features."""
    split, sizes = dry.split, dry.sizes
    num = split.num_micro_batches
    found = _of_engine(split.engine, dry)
    if dry.compares_whole_batch:
        found += _of_features(dry, num * split.micro_batch_size)
    found.append(Collective("agreement", "all_reduce", 64, AGREEMENTS))
    return [one for one in found if one.num_bytes and sizes.trained_weights]


def _of_features(dry: DryStep, own_rows: int) -> list[Collective]:
    """A block that goes around the ring makes the hops of an all-gather; so does its gradient, and one more, to its home."""
    total = own_rows * dry.split.world_size
    if dry.passed_bytes:
        return [
            Collective("features", "all_gather", total * dry.passed_bytes, 1, "loss"),
            Collective("features", "all_gather", total * dry.passed_back_bytes, 1, "loss"),
            Collective("features", "send", own_rows * dry.passed_back_bytes, 1),
        ]
    found = [Collective("features", "all_gather", total * dry.row_bytes, 1)]
    if dry.splits_loss:
        found.append(Collective("features", "all_reduce", total * dry.row_bytes, 1))
    return found


def _of_engine(engine: str, dry: DryStep) -> list[Collective]:
    sizes, num = dry.sizes, dry.split.num_micro_batches
    trained, every = sizes.trained_weights, sizes.all_weights
    passes = 2 * num - dry.split.kept_graphs if dry.compares_whole_batch else num
    if engine == "ddp":
        buckets = -(-trained // DDP_BUCKET)
        return [Collective("gradients", "all_reduce", trained // buckets, buckets, "backward, last")]
    buckets = -(-trained // (FLOAT_BYTES * REDUCE_BUCKET))
    weights = Collective("weights", "all_gather", trained, 1)
    if engine == "zero1":
        return [Collective("gradients", "all_reduce", trained // buckets, buckets), weights]
    if engine == "zero2":
        return [Collective("gradients", "reduce_scatter", trained // buckets, buckets * num), weights]
    blocks = max(1, sizes.num_blocks)
    block = (every - sizes.outside_blocks) // blocks
    units = Collective("weights", "all_gather", block, blocks * (passes + num), "forward and backward")
    if engine == "zero3":
        return [
            units,
            Collective("weights", "all_gather", sizes.outside_blocks, passes + num),
            Collective("gradients", "reduce_scatter", trained // blocks, blocks * num, "backward"),
        ]
    return [
        units,
        Collective("weights", "all_gather", sizes.outside_blocks, 1),
        Collective("gradients", "reduce_scatter", trained // blocks, blocks, "backward, last"),
    ]
