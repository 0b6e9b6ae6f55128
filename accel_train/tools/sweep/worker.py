"""A worker of a sweep: takes one trial after the other until as many as asked for have been started."""

import math
import shutil
import sys

import optuna
from optuna.trial import Trial, TrialState
from rich.console import Console

from accel_train.config.load import dump_config
from accel_train.config.schema import RunConfig
from accel_train.errors import CheckFailed, Stopped, UserError
from accel_train.quiet import is_quiet
from accel_train.stopping import StopRequest
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.sweep.results import best_trial, write_results
from accel_train.tools.sweep.settings import Sweep, trial_config
from accel_train.tools.sweep.space import as_text
from accel_train.tools.sweep.study import Taken, open_study, take_trial, trial_folder
from accel_train.tools.sweep.trial_run import Outcome, ScoreReader, run_trial, train_command
from accel_train.visible import visible

CONFIG = "sweep_trial.yaml"
"""A trial's configuration as it is started."""
ENDS = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def work(sweep: Sweep, score: str, console: Console, *, show_progress: bool = False) -> None:
    """Raises Stopped after a signal, its trial saved, and CheckFailed after too many failures in a row."""
    study = open_study(sweep)
    failures = 0
    stop = StopRequest()
    progress = RowProgress("trials", sweep.settings.trials, done=num_over(study), shown=show_progress, unit="trials")
    with stop.listening(), progress:
        while stop.signal is None and (taken := take_trial(study, sweep, stop)) is not None:
            try:
                outcome = carry_out(taken, sweep, score, stop, console)
            finally:
                taken.claim.release()
            if outcome.state == "stopped":
                raise _stopped(sweep, f"trial {taken.trial.number} was saved")
            write_results(study, sweep, score)
            forget_checkpoints(study, sweep)
            progress.advance(num_over(study) - progress.done)
            failures = failures + 1 if outcome.state == "failed" else 0
            if failures >= sweep.settings.max_failures:
                raise CheckFailed(
                    f"{failures} trials in a row failed, the last one with: {outcome.reason}\nMend what is wrong and start "
                    "the same command again, or raise max_failures if the search is meant to meet so many."
                )
        if stop.signal is not None:
            raise _stopped(sweep, "no trial was running")


def num_over(study: optuna.Study) -> int:
    """Trials that are complete, pruned or failed, whichever worker ran them."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def carry_out(taken: Taken, sweep: Sweep, score: str, stop: StopRequest, console: Console) -> Outcome:
    """Runs a trial and tells the study how it ended."""
    number = taken.trial.number
    values = "  ".join(f"{key}={as_text(value)}" for key, value in taken.values.items())
    _say(console, f"trial {number} {'starts' if taken.is_new else 'goes on'}: {values}")
    split = str(sweep.base.data.valid_split)
    reader = ScoreReader(taken.folder, split, score)
    try:
        config = trial_config(sweep, taken.values, taken.folder)
    except UserError as error:
        outcome = Outcome("failed", " ".join(str(error).split()))
    else:
        outcome = _train(taken, config, sweep, reader, stop)
    values_seen = [value for _, value in reader.scores]
    if outcome.state == "complete" and not (values_seen and math.isfinite(max(values_seen))):
        found = f"the best one is {max(values_seen)}" if values_seen else f"no evaluation of {split} has it"
        outcome = Outcome("failed", f"{score} is no number: {found}")
    if outcome.state == "stopped":
        _say(console, f"trial {number} was asked to stop and is saved")
        return outcome
    if values_seen:
        step, best = max(reader.scores, key=lambda scored: scored[1])
        taken.trial.set_user_attr("best_step", step)
        taken.trial.set_user_attr("best_score", best)
    if outcome.reason:
        taken.trial.set_user_attr("reason", outcome.reason)
    study = taken.trial.study
    study.tell(
        taken.trial,
        max(values_seen) if outcome.state == "complete" else None,
        state=ENDS[outcome.state],
        skip_if_finished=False,
    )
    _say(console, _end_in_words(study, number, outcome, score, values_seen))
    return outcome


def _train(taken: Taken, config: RunConfig, sweep: Sweep, reader: ScoreReader, stop: StopRequest) -> Outcome:
    path = taken.folder / CONFIG
    path.write_text(f"# Trial {taken.trial.number} of a sweep.\n\n{dump_config(config)}", encoding="utf-8")
    launch = sweep.settings.launch
    return run_trial(
        train_command(launch, path),
        taken.folder,
        reader,
        behind=lambda scores: report(taken.trial, scores),
        stop=stop,
        keep_open=taken.claim.for_process,
        has_launcher=launch is not None,
    )


def report(trial: Trial, scores: list[tuple[int, float]]) -> bool:
    """Tells the study of evaluations that it has not heard of. Whether the trial is behind the others."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    behind = False
    for place, (_, score) in enumerate(scores, start=1):
        if place not in known:
            trial.report(score, place)
            behind = trial.should_prune()
    return behind


def forget_checkpoints(study: optuna.Study, sweep: Sweep) -> None:
    """Removes the checkpoints of trials that are over and not the best, which would fill the disk."""
    if sweep.settings.keep_checkpoints == "all":
        return
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        if best is not None and trial.number != best.number:
            shutil.rmtree(trial_folder(sweep, trial.number) / "checkpoints", ignore_errors=True)


def _end_in_words(study: optuna.Study, number: int, outcome: Outcome, score: str, seen: list[float]) -> str:
    best = best_trial(study)
    so_far = f"; best so far: trial {best.number} with {best.value:.4f}" if best is not None else ""
    if outcome.state == "complete":
        return f"trial {number} is complete: {score} {max(seen):.4f}{so_far}"
    if outcome.state == "pruned":
        return f"trial {number} was pruned after {len(seen)} evaluations: {score} {max(seen):.4f}{so_far}"
    return f"trial {number} failed: {outcome.reason}"


def _say(console: Console, message: str) -> None:
    if is_quiet():
        return
    if console.is_terminal:  # a plain print goes above the bar; another console would write over it
        print(visible(message), file=sys.stderr if console.stderr else sys.stdout)
    else:
        console.print(visible(message), markup=False, soft_wrap=True)


def _stopped(sweep: Sweep, what: str) -> Stopped:
    return Stopped(f"the sweep was asked to stop; {what}, and the same command goes on with {sweep.folder}.")
