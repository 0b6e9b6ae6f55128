"""One rank of short trainings, with every allocation of torch's CPU allocator on record.

`python -m tests.tools.plan.memory_worker OUT RUN...`, each RUN a configuration file with its changes, divided by spaces.
Each trains for a few steps; rank 0 writes OUT, a JSON list of the most bytes held at once in the step that held least:
gloo's threads free what was sent when they get to it, which on a busy machine adds to a step what belongs to the one before.
"""

import gc
import json
import os
import sys
from bisect import bisect
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.profiler import ProfilerActivity, profile

from accel_train.config.load import load_config
from accel_train.engine import build, zero
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.train import advance, global_batches

BUCKET = 200_000
"""Instead of DeepSpeed's 50 million numbers, beside which a small model's memory would not be seen."""
LAST_STEP = 5


def main() -> NoReturn:
    out, *runs = sys.argv[1:]
    zero.REDUCE_BUCKET = zero.ZERO3_LIVE = BUCKET  # type: ignore[misc]
    found = [peak_of(*run.split(" ")) for run in runs]
    if int(os.environ.get("RANK", 0)) == 0:
        Path(out).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort Python's own ending


def peak_of(path: str, *overrides: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    config = load_config(path, list(overrides))
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        engine = build.build_engine(config)
        log = RunLog(Path(config.run_dir), is_main=engine.is_main, rank=engine.rank)
        run = set_up(config, engine, log, StopRequest(), fresh=False)
        for number, batch in enumerate(global_batches(run)):
            counts = [sum(len(part["sample_id"]) for part in batch.micro_batches)] * engine.world_size
            with torch.profiler.record_function(f"step {number}"):
                advance(run, batch, counts)
            if number == LAST_STEP:
                break
        log.close()
    del batch, run
    engine.release()
    return most_held(record)


def most_held(record: profile) -> int:
    """Bytes, from the signed sizes of all allocations since before the model was built."""
    events = list(record.profiler.kineto_results.events())  # type: ignore[union-attr]
    starts = sorted(event.start_ns() for event in events if event.name().startswith("step "))[1:]
    sizes = sorted((event.start_ns(), place, event.nbytes()) for place, event in enumerate(events) if is_memory(event))
    held = 0
    peaks = [0] * len(starts)
    for when, _, size in sizes:
        held += size
        if step := bisect(starts, when):
            peaks[step - 1] = max(peaks[step - 1], held)
    return min(peaks)


def is_memory(event: object) -> bool:
    return event.name() == "[memory]"  # type: ignore[attr-defined, no-any-return]


if __name__ == "__main__":
    main()
