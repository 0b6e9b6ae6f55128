"""Everything the loop knows beyond weights and optimizer state, small enough to read."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TrainState:
    """Learning rate, order of samples and random draws are functions of `step`, so none of them is stored."""

    step: int = 0
    """Optimizer steps taken."""
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


def state_of(saved: dict[str, Any]) -> TrainState:
    """The training state that a checkpoint's state.json holds."""
    return TrainState(**{name: saved[name] for name in TrainState.__slots__})
