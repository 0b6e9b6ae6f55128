"""The parts of one run, as the loop and what it calls see them."""

from dataclasses import dataclass, field

from accel_train.checkpoint.state import TrainState
from accel_train.checkpoint.store import Checkpoints
from accel_train.config.schema import RunConfig, interval_in_steps
from accel_train.data.dataset import Dataset
from accel_train.data.order import Order
from accel_train.engine.engine import Engine
from accel_train.inject import Faults
from accel_train.optim.param_groups import GroupPlan
from accel_train.phases import Phase
from accel_train.run_log import RunLog
from accel_train.stopping import StopRequest
from accel_train.tasks.task import Task


@dataclass(slots=True)
class Run:
    """The parts of one run. `state` and `scores` change while it trains, `phase` and `plan` where a phase begins."""

    config: RunConfig
    engine: Engine
    task: Task
    phases: list[Phase]
    order: Order
    dataset: Dataset
    log: RunLog
    checkpoints: Checkpoints
    total_steps: int
    stop: StopRequest
    faults: Faults
    phase: Phase
    plan: GroupPlan
    state: TrainState
    scores: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""

    def is_due(self, interval: str | None) -> bool:
        every = interval and interval_in_steps(interval, self.order.steps_per_epoch)
        return self.is_finished or bool(every and self.state.step % every == 0)

    @property
    def ends_phase(self) -> bool:
        return self.state.step >= self.phase.end

    @property
    def is_finished(self) -> bool:
        return self.state.step >= self.total_steps or ran_out_of_patience(self.config, self.state)


def ran_out_of_patience(config: RunConfig, state: TrainState) -> bool:
    """Whether early stopping, as it is configured now, ends the run here."""
    early = config.evaluation.early_stopping
    return early is not None and state.evaluations_without_gain >= early.patience
