"""One rank that verifies one step of several scenarios: `python -m tests.distributed.verify_worker OUT DATASET RUN ...`.

A run is SCENARIO@K, with K micro-batches on each rank. Rank 0 writes OUT/RUN.json: the problems found, and the output.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import NoReturn
from unittest import mock

import torch.distributed as dist

from accel_train.engine.engine import Engine
from accel_train.errors import CheckFailed
from accel_train.tools.verify.step_check import verify_step
from tests.distributed.scenarios import GLOBAL_BATCH, config_of
from tests.distributed.worker import forget_last_engine


def main() -> NoReturn:
    out, dataset, *runs = sys.argv[1:]
    world_size = int(os.environ["WORLD_SIZE"])
    for run in runs:
        scenario, _, num_micro_batches = run.partition("@")
        config = config_of(
            scenario,
            dataset=dataset,
            run_dir=str(Path(out) / "never_written"),
            engine="ddp",
            micro_batch_size=GLOBAL_BATCH // (world_size * int(num_micro_batches)),
        )
        forget_last_engine()
        said, problems = io.StringIO(), ""
        # The process group is kept from run to run.
        with mock.patch.object(Engine, "close"), contextlib.redirect_stdout(said):
            try:
                verify_step(config, as_configured=True, tolerance=None, step=None, at_once=None, as_json=True)
            except CheckFailed as failure:
                problems = str(failure)
        if os.environ["RANK"] == "0":
            found = json.loads(said.getvalue()) | {"said": problems}
            (Path(out) / f"{run}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort Python's own ending


if __name__ == "__main__":
    main()
