"""One rank of short trainings, with every allocation of torch's CPU allocator on record.

`python -m tests.tools.plan.memory_worker OUT RUN...`, each RUN a configuration file with its changes, divided by spaces.
Each trains for a few steps; rank 0 writes OUT, a JSON list of the most bytes held at once in the one of the last steps that
held least: gloo's threads free what was sent when they get to it, which on a busy machine adds to a step what belongs to the
one before.
"""

import ctypes
import functools
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.state import AcceleratorState, GradientState
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from accel_train.config.load import load_config
from accel_train.engine import buffers, build
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.train import advance, global_batches

BUCKET = 200_000
"""Instead of DeepSpeed's 50 million numbers, beside which a small model's memory would not be seen."""
FIRST_STEP, LAST_STEP = 2, 3
"""Those that are measured: before them optimizers and DeepSpeed's order of modules are not settled."""


def main() -> NoReturn:
    out, *runs = sys.argv[1:]
    count_every_thread()
    buffers.REDUCE_BUCKET = buffers.ZERO3_LIVE = BUCKET  # type: ignore[misc]
    found = [peak_of(*run.split(" ")) for run in runs]
    if int(os.environ.get("RANK", 0)) == 0:
        Path(out).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort Python's own ending


def count_every_thread() -> None:
    """Lets the allocator's total hold what threads allocate and free that no profiler watches.

    Else what gloo's threads free would count as held for ever.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def peak_of(path: str, *overrides: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    config = load_config(path, list(overrides))
    gc.collect()
    before = most_held(lambda: torch.empty(1))
    engine = build.build_engine(config)
    log = RunLog(Path(config.run_dir), is_main=engine.is_main, rank=engine.rank)
    run = set_up(config, engine, log, StopRequest(), fresh=False)
    peaks = []
    for number, batch in enumerate(global_batches(run)):
        counts = [sum(len(part["sample_id"]) for part in batch.micro_batches)] * engine.world_size
        if number < FIRST_STEP:
            advance(run, batch, counts)
            continue
        peaks.append(most_held(functools.partial(advance, run, batch, counts)))
        if number == LAST_STEP:
            break
    log.close()
    del batch, run
    engine.release()
    return min(peaks) - before


def most_held(action: Callable[[], object]) -> int:
    """The largest total of the allocator, in bytes, while the action ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    most = 0
    events = list(record.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while events:
        event = events.pop()
        if event.tag == _EventType.Allocation:
            most = max(most, event.extra_fields.total_allocated)
        events.extend(event.children)
    return most


if __name__ == "__main__":
    main()
