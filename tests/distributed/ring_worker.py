"""One rank of `test_ring.py`: `python -m tests.distributed.ring_worker OUT` writes what it saw to OUT/RANK.pt.

Blocks differ in size, and one is empty.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from accel_train.batch_loss import batch_loss
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.engine.ring import around_ring
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.task import Batch
from tests.distributed.scenarios import config_of

COUNTS = [3, 0, 5]
WIDTH = 4
LOSSES = [("own", 0.0), ("own", 0.1), ("shared", 0.0), ("shared", 0.1)]
FORMS = ("ring", "gathered")


def main() -> None:
    out = Path(sys.argv[1])
    config = config_of("sigmoid", dataset="unread", run_dir=str(out), engine="ddp", micro_batch_size=1)
    engine = build_engine(config)
    found: dict[str, Any] = {"visits": visits(engine)}
    for positives, smoothing in LOSSES:
        loss = config.loss.model_copy(update={"positives": positives, "label_smoothing": smoothing})  # type: ignore[attr-defined]
        task = ContrastiveTask(config.model_copy(update={"loss": loss}))
        for form in FORMS:
            task.ring_outputs = ("text_features",) if form == "ring" else ()
            found[f"{form} {positives} {smoothing}"] = loss_of(engine, task)
    torch.save(found, out / f"{engine.rank}.pt")
    engine.close()


def visits(engine: Engine) -> dict[str, Any]:
    """A ring in which rank r adds 10^r to each row, in fp64, beside the order of events."""
    events: list[Any] = []

    def visit(owner: int, block: dict[str, Tensor]) -> dict[str, Tensor]:
        events.append((owner, block["number"].tolist()))
        return {"sum": torch.full((len(block["number"]), 2), 10.0**engine.rank, dtype=torch.float64)}

    post = dist.batch_isend_irecv

    def posted(moves: list[dist.P2POp]) -> list[dist.Work]:
        events.append("post")
        return post(moves)

    block = {"number": 100 * engine.rank + torch.arange(COUNTS[engine.rank])}
    with mock.patch.object(dist, "batch_isend_irecv", posted):
        home = around_ring(engine, block, COUNTS, visit)
    return {"events": events, "home": home}


def samples(rank: int) -> tuple[Batch, Batch]:
    """Outputs and columns of a rank's rows, in fp64; keys repeat within ranks and over them."""
    generator = torch.Generator().manual_seed(rank)
    pair = torch.randn(2, COUNTS[rank], WIDTH, generator=generator, dtype=torch.float64)
    image, text = F.normalize(pair, dim=-1).unbind()
    image_key, text_key = torch.randint(0, 6, (2, COUNTS[rank]), generator=generator)
    scale, bias = torch.tensor([[5.0], [-2.0]], dtype=torch.float64)
    outputs = {"image_features": image, "text_features": text, "logit_scale": scale, "logit_bias": bias}
    columns = {"image_key": image_key, "text_key": text_key, "sample_id": torch.arange(COUNTS[rank])}
    return {name: value.clone().requires_grad_() for name, value in outputs.items()}, columns


def loss_of(engine: Engine, task: ContrastiveTask) -> dict[str, Any]:
    outputs, columns = samples(engine.rank)
    with counted_bytes() as sent:
        found = batch_loss(engine, task, [outputs], [columns], COUNTS)
    return {"losses": found.losses, "gradients": found.gradients, "sent": sent, "outputs": found.outputs()}


@contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """Bytes of features and gradients that this rank sends on, where a gather makes W - 1 hops, and a sum 2 (W - 1) / W."""
    sent = {"features": 0}
    last = dist.get_world_size() - 1
    gather, reduce, post = dist.all_gather, dist.all_reduce, dist.batch_isend_irecv

    def count(value: Tensor, times: float) -> None:
        if value.is_floating_point() and value.numel() >= WIDTH:
            sent["features"] += int(value.numel() * value.element_size() * times)

    def gathered(into: Any, value: Tensor) -> Any:
        count(value, last)
        return gather(into, value)

    def reduced(value: Tensor) -> Any:
        count(value, 2 * last / (last + 1))
        return reduce(value)

    def posted(moves: list[dist.P2POp]) -> list[dist.Work]:
        for move in moves:
            if move.op is dist.isend:
                count(move.tensor, 1)
        return post(moves)

    with (
        mock.patch.object(dist, "all_gather", gathered),
        mock.patch.object(dist, "all_reduce", reduced),
        mock.patch.object(dist, "batch_isend_irecv", posted),
    ):
        yield sent


if __name__ == "__main__":
    main()
