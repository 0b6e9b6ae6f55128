"""When each optimizer step of this process ended, whichever trainer takes it: a hook in torch, so no trainer is changed."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def time_steps(output: str, last_step: int | None = None) -> None:
    """Writes a line for each step: the clock and the processor time, in seconds. Rank 0 alone does.

    After `last_step` all ranks leave, for a trainer that counts its length in epochs alone.

    Processor time is that of all threads of the process; what other programs take of the machine is not in it.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    file = Path(output if is_main else os.devnull).open("w", buffering=1)  # noqa: SIM115 (closed when the process ends)
    num_steps = 0

    def note(*_: Any) -> None:
        nonlocal num_steps
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        num_steps += 1
        file.write(f"{time.perf_counter()} {time.process_time()}\n")
        if num_steps == last_step:
            os._exit(0)

    register_optimizer_step_post_hook(note)
