"""When each optimizer step of this process ended, whichever trainer takes it: a hook in torch, so no trainer is changed."""

import os
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


def time_steps(output: str) -> None:
    """Writes a line for each step: the clock and the processor time, in seconds. Rank 0 alone does.

    Processor time is that of all threads of the process; what other programs take of the machine is not in it.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    file = Path(output).open("w", buffering=1)  # noqa: SIM115 (closed when the process ends)

    def note(*_: Any) -> None:
        file.write(f"{time.perf_counter()} {time.process_time()}\n")

    register_optimizer_step_post_hook(note)
