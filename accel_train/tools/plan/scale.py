"""A model of the same training on more GPUs: what a step costs on W of them, and what it waits for.

Weak scaling: each GPU keeps its micro-batches, so the global batch grows with the number of GPUs. It is a model, not a
measurement: links are as fast as the user says, every GPU computes alike, and nothing else is on the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from accel_train.optim.param_groups import GroupPlan
from accel_train.tasks.task import Task
from accel_train.tools.calibration.record import Rates
from accel_train.tools.dry_run.counting import PRODUCTS
from accel_train.tools.dry_run.step import DryStep, Split, dry_step
from accel_train.tools.plan.step_time import ELEMENTWISE, by_what, hiding_time, optimizer_seconds, phase_seconds
from accel_train.tools.plan.traffic import Collective, traffic

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
MOST_GPUS = 1024
GOOD = 0.9
"""Efficiency below which something is called a bottleneck."""
LOSS_AT = 8
"""Ranks at which the loss is counted a second time, to see how it grows."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
PARTS = ("compute", "loss", "optimizer", "gradients", "weights", "features", "agreement")


@dataclass(frozen=True, slots=True)
class Links:
    """What connects the GPUs. Bandwidths in bytes/s in one direction, as a collective can use them."""

    intra_node: float
    """Of one GPU, to the others of its node."""
    inter_node: float
    """Of one node, all its adapters together."""
    latency: float
    """Seconds for a message to reach its neighbour."""
    gpus_per_node: int

    def bandwidth(self, num_gpus: int) -> float:
        """Of a ring through all GPUs: it enters and leaves each node once."""
        return self.intra_node if num_gpus <= self.gpus_per_node else min(self.intra_node, self.inter_node)


@dataclass(frozen=True, slots=True)
class ScaleQuestion:
    """What `--scale` asks: links, and how fast a GPU is where it isn't this host's."""

    links: Links
    flops_per_second: float | None
    """None: this host's calibration."""
    bytes_per_second: float | None
    most: int = MOST_GPUS


@dataclass(frozen=True, slots=True)
class Compute:
    """Seconds of one GPU's own work."""

    forward: float
    backward: float
    loss: float
    loss_growth: float
    """For each further GPU, whose samples are compared too."""
    optimizer: float
    """With all weights updated by one rank."""


@dataclass(frozen=True, slots=True)
class ScalePoint:
    num_gpus: int
    global_batch_size: int
    parts: dict[str, float]
    """Seconds by part; communication is what the computation does not hide."""
    efficiency: float
    """Samples per second and GPU, over those of one GPU."""

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Scaling:
    points: dict[str, list[ScalePoint]]
    """By engine, from 1 GPU to the most."""
    links: Links

    def bottleneck(self, engine: str) -> tuple[int, str] | None:
        """The first number of GPUs with an efficiency below GOOD, and the part that has grown most since one GPU."""
        alone, *others = self.points[engine]
        for point in others:
            if point.efficiency < GOOD:
                growth = {part: point.parts[part] - alone.parts[part] for part in PARTS}
                return point.num_gpus, max(growth, key=lambda part: growth[part])
        return None


def all_reduce_seconds(num_bytes: float, num_gpus: int, links: Links) -> tuple[float, Literal["ring", "tree"]]:
    """The faster of a ring and a tree over the nodes, as NCCL chooses.

    Ring: 2 (W - 1) messages of 1/W of the bytes (Patarasuk and Yuan, 2009). Tree: a chain in each node and two binary
    trees over the nodes, each with half of the bytes, so that every link is used in full (Sanders et al., 2009).
    """
    bandwidth = links.bandwidth(num_gpus)
    nodes, local = -(-num_gpus // links.gpus_per_node), min(num_gpus, links.gpus_per_node)
    ring = 2 * (num_gpus - 1) * (links.latency + num_bytes / num_gpus / bandwidth)
    hops = 2 * (local - 1) + 2 * math.ceil(math.log2(nodes)) if nodes > 1 else 2 * (local - 1)
    tree = hops * links.latency + 2 * num_bytes / bandwidth
    return (ring, "ring") if ring <= tree else (tree, "tree")


def collective_seconds(one: Collective, num_gpus: int, links: Links) -> float:
    if one.kind == "all_reduce":
        return all_reduce_seconds(one.num_bytes, num_gpus, links)[0]
    if one.kind == "send":
        return links.latency + one.num_bytes / links.bandwidth(num_gpus)
    return (num_gpus - 1) * (links.latency + one.num_bytes / num_gpus / links.bandwidth(num_gpus))


def given_rates(flops_per_second: float, bytes_per_second: float) -> Rates:
    """Rates of a GPU that the user describes: products at one speed, element-wise operations at the memory's."""
    curves = {f"{kind}/{dtype}": [(1.0, 1 / flops_per_second)] for kind in PRODUCTS for dtype in DTYPES}
    return Rates(curves | {kind: [(1.0, 1 / bytes_per_second)] for kind in ELEMENTWISE}, seconds_per_operation=0.0)


def scaling(
    model: nn.Module, plan: GroupPlan, task: Task, split: Split, rates: Rates, links: Links, most: int = MOST_GPUS
) -> Scaling:
    """Steps on 1, 2, 4, ... GPUs up to `most`, under every engine, each GPU keeping the micro-batches of `split`."""
    alone = dry_step(model, plan, task, replace(split, world_size=1, engine="ddp", offload=False))
    many = dry_step(model, plan, task, replace(split, world_size=LOSS_AT, engine="ddp", offload=False))
    compute = _compute(alone, many, rates)
    numbers = [2**power for power in range(most.bit_length())]
    points = {engine: [_point(alone, engine, number, compute, links) for number in numbers] for engine in ENGINES}
    return Scaling({engine: _with_efficiency(found) for engine, found in points.items()}, links)


def _compute(alone: DryStep, many: DryStep, rates: Rates) -> Compute:
    first, then = phase_seconds(alone, rates), phase_seconds(many, rates)
    loss = first.get("loss", 0.0)
    return Compute(
        forward=sum(seconds for phase, seconds in first.items() if phase.startswith("forward")),
        backward=first.get("backward", 0.0),
        loss=loss,
        loss_growth=max(0.0, then.get("loss", 0.0) - loss) / (LOSS_AT - 1),
        optimizer=optimizer_seconds(alone, rates),
    )


def _point(alone: DryStep, engine: str, num_gpus: int, compute: Compute, links: Links) -> ScalePoint:
    dry = replace(alone, split=replace(alone.split, engine=engine, world_size=num_gpus))
    loss = compute.loss + compute.loss_growth * (num_gpus - 1)
    phases = {"forward": compute.forward, "backward": compute.backward, "loss": loss}
    parts = dict.fromkeys(PARTS, 0.0) | {
        "compute": compute.forward + compute.backward,
        "loss": loss,
        "optimizer": compute.optimizer / (1 if engine == "ddp" else num_gpus),
    }
    if num_gpus > 1:
        sent = by_what(traffic(dry), lambda one: collective_seconds(one, num_gpus, links))
        for (what, hidden_by), seconds in sent.items():
            parts[what] += max(0.0, seconds - hiding_time(hidden_by, phases, dry))
    samples = num_gpus * alone.split.num_micro_batches * alone.split.micro_batch_size
    return ScalePoint(num_gpus, samples, parts, 1.0)


def _with_efficiency(points: Sequence[ScalePoint]) -> list[ScalePoint]:
    return [replace(point, efficiency=points[0].seconds / point.seconds) for point in points]
