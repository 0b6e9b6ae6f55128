"""Everything the loop knows beyond weights and optimizer state, small enough to read."""

from dataclasses import dataclass, field
from typing import Any

from accel_train.checkpoint.rollbacks import Rollback, as_rollback


@dataclass(slots=True)
class TrainState:
    """Learning rate, order of samples and random draws are functions of `step`, so none of them is stored."""

    step: int = 0
    """Steps taken; some of them may have made no update."""
    samples: int = 0
    """Samples trained on, each one counted every time it was used."""
    unreadable: int = 0
    """Samples skipped because they could not be read."""
    loss_scale: float = 1.0
    """fp16 only."""
    steps_since_overflow: int = 0
    first_scores: dict[str, float] = field(default_factory=dict)
    """Scores before the first step."""
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    carried_updates: dict[str, int] = field(default_factory=dict)
    """For parameters whose optimizer state was brought from another run: its count of updates."""
    score_to_beat: float | None = None
    """What early stopping compares with: the last score that rose by more than min_delta."""
    advised: list[str] = field(default_factory=list)
    """Advice that was given: each piece is said once in a run."""
    logged_loss: float = 0.0
    """Sum of the training losses logged since the last evaluation, and how many they are."""
    logged_steps: int = 0
    losses: list[list[float]] = field(default_factory=list)
    """(training loss, validation loss) at the last evaluations, where the task's scores hold a loss."""
    skipped: list[int] = field(default_factory=list)
    """Steps without an update, since a loss or gradient was not finite; counted from 1, as in metrics.jsonl."""
    skipped_in_a_row: int = 0
    """How many of the last steps these are."""
    rollbacks: list[Rollback] = field(default_factory=list)

    def updates_since(self, first_step: int) -> int:
        """Updates of a parameter whose optimizer state was empty after `first_step` steps."""
        return num_updates(self.step, first_step, self.skipped)


def state_of(saved: dict[str, Any]) -> TrainState:
    """The training state that a checkpoint's state.json holds."""
    values = {name: saved[name] for name in TrainState.__slots__}
    return TrainState(**{**values, "rollbacks": [as_rollback(entry) for entry in saved["rollbacks"]]})


def num_updates(step: int, first_step: int, skipped: list[int]) -> int:
    """Updates between two counts of steps, the first one perhaps below 0 for updates that were brought along."""
    return step - first_step - sum(first_step < index <= step for index in skipped)
