"""A run that is set up as `train` would set it up, takes some steps, and leaves nothing behind in its run_dir."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from accel_train.checkpoint.owned import persistent_buffers
from accel_train.checkpoint.state import TrainState
from accel_train.config.schema import LogSection, RunConfig
from accel_train.engine.build import build_engine
from accel_train.interrupts import ending_by_sigterm
from accel_train.optim.optimizers import state_names
from accel_train.run import Run
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest


@contextmanager
def rehearsal(config: RunConfig, *, quiet: bool) -> Iterator[Run]:
    """The run at its first step, under the present launch. Raises UserError on every rank.

    Its log, and whatever it writes, go to a scratch folder that is removed, after Ctrl-C and SIGTERM too.
    """
    section = LogSection(log_every=config.log.log_every)
    with ExitStack() as ending:
        ending.enter_context(ending_by_sigterm())
        engine = build_engine(config.model_copy(update={"log": section}))
        folder = engine.gather_objects(tempfile.mkdtemp(prefix="accel_train_") if engine.is_main else None)[0]
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        ending.callback(engine.close)
        config = config.model_copy(update={"run_dir": folder, "log": section})
        log = RunLog(Path(folder), is_main=engine.is_main, rank=engine.rank)
        ending.callback(log.close)
        log.console.quiet = log.console.quiet or quiet
        yield set_up(config, engine, log, StopRequest(), fresh=False)


@dataclass(slots=True)
class Snapshot:
    """A run's weights, optimizer state, buffers and counters, in host memory.

    Nothing else needs keeping: data and randomness are functions of the step.
    """

    shards: list[tuple[Tensor, dict[str, Tensor]]]
    buffers: dict[str, Tensor]
    state: TrainState

    @classmethod
    def of(cls, run: Run) -> "Snapshot":
        return cls(
            [
                (shard.weight.to("cpu", copy=True), {k: v.to("cpu", copy=True) for k, v in shard.state.items()})
                for shard in run.engine.shards(state_names(run.config.optimizer))
            ],
            {name: buffer.to("cpu", copy=True) for name, buffer in persistent_buffers(run.engine).items()},
            deepcopy(run.state),
        )

    def restore(self, run: Run) -> None:
        """Puts everything back. Called by all ranks together, between two steps."""
        run.state = deepcopy(self.state)
        present = run.engine.shards(state_names(run.config.optimizer))
        for (weight, state), shard in zip(self.shards, present, strict=True):
            shard.weight.copy_(weight)
            for name, value in state.items():
                shard.state[name].copy_(value)
        for name, buffer in persistent_buffers(run.engine).items():
            buffer.copy_(self.buffers[name])
        run.engine.finish_loading([run.state.updates_since(group.first_step) for group in run.plan.groups])
