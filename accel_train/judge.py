"""Scores during training: the best checkpoint, early stopping, and a word when a fine-tune gets worse."""

from pathlib import Path

from torch import Tensor

from accel_train.evaluate import evaluate
from accel_train.prediction_file import write_prediction_rows
from accel_train.progress import score_table
from accel_train.run import Run, ran_out_of_patience
from accel_train.watch import watch_scores


def evaluate_and_judge(run: Run) -> None:
    """Scores the validation split, remembers the best, and decides on early stopping."""
    config, state = run.config, run.state
    split = config.data.valid_split
    assert split is not None
    found = evaluate(run.engine, run.task, split, config)
    run.faults.at("evaluation", state.step)
    scores = run.scores = found.scores
    run.log.metrics(state.step, split, scores)
    run.engine.track({f"{split}/{name}": value for name, value in scores.items()}, state.step)
    run.log.show(score_table(scores, f"{split} at step {state.step}"))
    name = run.task.best_score
    if state.step == 0:
        state.first_scores = scores
    watch_scores(run, scores)
    early = config.evaluation.early_stopping
    if state.score_to_beat is None or scores[name] > state.score_to_beat + (early.min_delta if early else 0.0):
        state.score_to_beat = scores[name]
        state.evaluations_without_gain = 0
    else:
        state.evaluations_without_gain += 1
    if state.best_score is None or scores[name] > state.best_score:
        state.best_score, state.best_step = scores[name], state.step
        run.engine.together(lambda: write_predictions(run, split, found.predictions))
    if early and ran_out_of_patience(config, state):
        much = f" by more than {early.min_delta:g}" if early.min_delta else ""
        plural = "s" * (early.patience != 1)
        run.log.say(f"stopping early: {name} has not risen{much} in {early.patience} evaluation{plural}.")


def write_predictions(run: Run, split: str, predictions: dict[str, Tensor]) -> None:
    """Leaves the predictions of the best evaluation in the run's folder, if the task has any."""
    if run.engine.is_main and run.task.has_prediction_rows:
        folder = Path(run.config.run_dir) / "predictions"
        folder.mkdir(exist_ok=True)
        write_prediction_rows(folder / f"{split}.csv", run.task.prediction_rows(predictions, split))
