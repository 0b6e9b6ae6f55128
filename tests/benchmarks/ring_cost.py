"""`python -m tests.benchmarks.ring_cost ROWS ROUNDS`: the sigmoid loss of a global batch around the ring, and gathered.

On every rank of a launch. Rank 0 prints a JSON object on its last line: for each form the seconds of every round, from the
outputs of all ranks to their gradients; the bytes of features and gradients that one rank sends; and the most that torch's
allocator held at once, above what it held before.
"""

import json
import sys
import tempfile
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from accel_train.batch_loss import batch_loss
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.task import Batch
from accel_train.tools.bench.figures import in_turns
from tests.distributed.ring_worker import counted_bytes
from tests.distributed.scenarios import config_of

WIDTH = 512


def main(rows: str, rounds: str) -> None:
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp()
    config = config_of("sigmoid", dataset="unread", run_dir=folder, engine="ddp", micro_batch_size=1)
    engine = build_engine(config)
    num_own = int(rows) // engine.world_size
    tasks = {"ring": ContrastiveTask(config), "gathered": ContrastiveTask(config)}
    tasks["gathered"].ring_outputs = ()
    outputs, columns = samples(engine.rank, num_own)
    counts = [num_own] * engine.world_size
    ways = {form: partial(batch_loss, engine, task, [outputs], [columns], counts) for form, task in tasks.items()}
    found: dict[str, Any] = {
        form: {"seconds": each} for form, each in in_turns(ways, rounds=int(rounds), settle=dist.barrier).items()
    }
    for form, way in ways.items():
        with counted_bytes() as sent:
            way()
        found[form] |= {"sent": sent["features"], "held": bytes_held(engine, way)}
    if engine.is_main:
        print(json.dumps(found))
    engine.close()


def samples(rank: int, num_rows: int) -> tuple[Batch, Batch]:
    """Normalised features, and keys of which some repeat."""
    generator = torch.Generator().manual_seed(rank)
    image, text = F.normalize(torch.randn(2, num_rows, WIDTH, generator=generator), dim=-1)
    image_key, text_key = torch.randint(0, 2**20, (2, num_rows), generator=generator)
    outputs = {"image_features": image, "text_features": text}
    outputs |= {"logit_scale": torch.tensor([10.0]), "logit_bias": torch.tensor([-10.0])}
    columns = {"image_key": image_key, "text_key": text_key, "sample_id": torch.arange(num_rows)}
    return {name: value.clone().requires_grad_() for name, value in outputs.items()}, columns


def bytes_held(engine: Engine, way: Any) -> int:
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        found = way()
    del found
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = sorted(
        (event.start_ns(), place, event.nbytes()) for place, event in enumerate(events) if event.name() == "[memory]"
    )
    return max(accumulate(size for _, _, size in sizes))


if __name__ == "__main__":
    main(*sys.argv[1:])
