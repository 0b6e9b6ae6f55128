"""Scores during training: the best checkpoint, early stopping, and a word when a fine-tune gets worse."""

from accel_train.evaluate import evaluate
from accel_train.progress import score_table
from accel_train.run import Run, ran_out_of_patience


def evaluate_and_judge(run: Run) -> None:
    """Scores the validation split, remembers the best, and decides on early stopping."""
    config, state = run.config, run.state
    assert config.data.valid_split is not None
    scores = run.scores = evaluate(run.engine, run.task, config.data.valid_split, config).scores
    run.log.metrics(state.step, config.data.valid_split, scores)
    run.engine.track({f"{config.data.valid_split}/{name}": value for name, value in scores.items()}, state.step)
    run.log.show(score_table(scores, f"{config.data.valid_split} at step {state.step}"))
    name = run.task.best_score
    if state.step == 0:
        state.first_scores = scores
    elif name in state.first_scores and scores[name] < state.first_scores[name]:
        run.log.say(
            f"warning: {name} is {scores[name]:.4f}, below the {state.first_scores[name]:.4f} before the first step."
        )
    early = config.evaluation.early_stopping
    if state.score_to_beat is None or scores[name] > state.score_to_beat + (early.min_delta if early else 0.0):
        state.score_to_beat = scores[name]
        state.evaluations_without_gain = 0
    else:
        state.evaluations_without_gain += 1
    if state.best_score is None or scores[name] > state.best_score:
        state.best_score, state.best_step = scores[name], state.step
    if early and ran_out_of_patience(config, state):
        run.log.say(
            f"stopping early: {name} has not risen by more than {early.min_delta} in {early.patience} evaluations."
        )
