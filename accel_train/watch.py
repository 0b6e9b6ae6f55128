"""Gives advice while a run trains. Each piece is said once in a run, after a resume too; the rules are in `advice.py`."""

from accel_train import advice
from accel_train.run import Run


def watch_start(run: Run) -> None:
    """What the configuration says of the phase that begins here."""
    prefix = f"phase {run.phase.name}: " if len(run.phases) > 1 else ""
    for line in advice.before_training(run.config, run.phase.optimizer, run.plan, len(run.dataset)):
        say_once(run, line, prefix + line)


def watch_step(run: Run, loss: float, gradient_norm: float) -> None:
    """At a step that is logged."""
    run.state.logged_loss += loss
    run.state.logged_steps += 1
    say_once(run, "large gradient", advice.large_gradient(gradient_norm, run.config.optimizer.max_grad_norm))


def watch_scores(run: Run, scores: dict[str, float]) -> None:
    """At an evaluation. The training loss is the mean of what was logged since the one before."""
    state, name = run.state, run.task.best_score
    if name in state.first_scores and state.step > 0:
        say_once(run, "below start", advice.below_start(name, scores[name], state.first_scores[name]))
    if "loss" in scores and state.logged_steps:
        state.losses = [*state.losses, [state.logged_loss / state.logged_steps, scores["loss"]]]
        state.losses = state.losses[-advice.RISING_EVALUATIONS - 1 :]
        say_once(run, "overfitting", advice.overfitting(state.losses))
    state.logged_loss, state.logged_steps = 0.0, 0


def say_once(run: Run, rule: str, line: str | None) -> None:
    """`rule` is what is remembered of a line, whose figures may change."""
    if line is None or run.config.advice == "off" or rule in run.state.advised:
        return
    run.state.advised = [*run.state.advised, rule]
    run.log.say(f"advice: {line}")
