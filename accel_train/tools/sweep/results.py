"""What a sweep leaves: a table of its trials, the best configuration, and both as JSON."""

import csv
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from accel_train.config.load import dump_config
from accel_train.tools.sweep.locks import locked
from accel_train.tools.sweep.settings import Sweep, trial_config
from accel_train.tools.sweep.space import as_text
from accel_train.tools.sweep.study import LOCK, trial_folder, values_of
from accel_train.visible import visible

TRIALS, BEST = "trials.csv", "best.yaml"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
SHOWN = 10
"""Trials in the table on the terminal."""


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the highest score; of equal ones the first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def summary(study: optuna.Study, sweep: Sweep, score: str) -> dict[str, Any]:
    """The whole sweep for programs."""
    trials = [as_row(trial, sweep) for trial in study.get_trials(deepcopy=False)]
    best = best_trial(study)
    counts = {
        state: sum(trial["state"] == state for trial in trials) for state in STATES.values() if state != "waiting"
    }
    return {
        "sweep_dir": str(sweep.folder),
        "score": score,
        "counts": counts,
        "best": as_row(best, sweep) if best else None,
        "best_config": str(sweep.folder / BEST) if best else None,
        "importance": importance(study),
        "trials": trials,
    }


def as_row(trial: FrozenTrial, sweep: Sweep) -> dict[str, Any]:
    values = values_of(trial.params, sweep)
    if len(values) == len(sweep.space.searched):
        with suppress(ValueError):  # of which the trial died; its reason says it
            values = sweep.space.with_derived(values)
    seconds = trial.duration.total_seconds() if trial.duration else None
    return {
        "trial": trial.number,
        "state": STATES[trial.state.name],
        "score": trial.user_attrs.get("best_score"),
        "step": trial.user_attrs.get("best_step"),
        "evaluations": len(trial.intermediate_values),
        "seconds": seconds and round(seconds, 1),
        "values": values,
        "reason": trial.user_attrs.get("reason", ""),
        "run_dir": str(trial_folder(sweep, trial.number)),
    }


def importance(study: optuna.Study) -> dict[str, float]:
    """Each key's share in the score's variance among the better trials (PED-ANOVA), from complete trials; empty for few."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def write_results(study: optuna.Study, sweep: Sweep, score: str) -> None:
    """trials.csv and best.yaml, each whole or as it was. Any worker may write them at any time."""
    with locked(sweep.folder / LOCK):
        _replace(sweep.folder / TRIALS, _as_csv(study, sweep))
        best = best_trial(study)
        if best is not None:
            _replace(sweep.folder / BEST, best_yaml(best, sweep, score))


def best_yaml(best: FrozenTrial, sweep: Sweep, score: str) -> str:
    """The best trial's configuration, complete, with a folder of its own for a run of it."""
    config = trial_config(sweep, values_of(best.params, sweep), sweep.folder / "best")
    values = sweep.space.with_derived(values_of(best.params, sweep))
    own = trial_folder(sweep, best.number)
    lines = [
        f"The best configuration that a sweep over {sweep.settings.config} found, in trial {best.number}.",
        "",
        f"Expected: {score} {best.value:.4f} on {config.data.valid_split}, at step {best.user_attrs['best_step']}.",
        f"The trial itself, trained and ready for `accel-train evaluate`: {own}",
        "",
        *(f"  {key}={as_text(value)}" for key, value in values.items()),
        "",
        f"  accel-train train {sweep.folder / BEST}",
    ]
    head = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return f"{head}\n{dump_config(config)}"


def table(found: dict[str, Any]) -> Table:
    """The best trials, best first, then those that failed."""
    counts = ", ".join(f"{count} {state}" for state, count in found["counts"].items() if count)
    drawn = Table(title=escape(visible(f"{found['sweep_dir']}: {counts}")), title_justify="left", title_style="bold")
    ordered = sorted(
        (trial for trial in found["trials"] if trial["state"] in ("complete", "pruned", "failed")),
        key=lambda trial: (trial["state"] == "failed", trial["state"] == "pruned", -(trial["score"] or 0.0)),
    )
    keys = list(dict.fromkeys(key for trial in ordered for key in trial["values"]))
    for name in ("trial", "state", found["score"], "step"):
        drawn.add_column(name, justify="left" if name == "state" else "right")
    for name in short_names(keys):
        drawn.add_column(name, justify="right", overflow="fold")
    for trial in ordered[:SHOWN]:
        score = "" if trial["score"] is None else f"{trial['score']:.4f}"
        values = [escape(visible(_short(trial["values"].get(key)))) for key in keys]
        drawn.add_row(str(trial["trial"]), trial["state"], score, str(trial["step"] or ""), *values)
    if len(ordered) > SHOWN:
        drawn.caption = f"{len(ordered) - SHOWN} more in {TRIALS}"
    return drawn


def short_names(keys: list[str]) -> list[str]:
    """For each dotted key its last two parts, or as many more as tell it from the others."""
    ends = [[".".join(key.split(".")[-count:]) for count in range(2, max(2, key.count(".") + 1) + 1)] for key in keys]
    every = [end for those in ends for end in those]
    return [next((end for end in those if every.count(end) == 1), those[-1]) for those in ends]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def _as_csv(study: optuna.Study, sweep: Sweep) -> str:
    rows = [as_row(trial, sweep) for trial in study.get_trials(deepcopy=False)]
    keys = [*sweep.space.searched, *sweep.space.derived]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["trial", "state", "score", "step", "evaluations", "seconds"]
    writer.writerow([*columns, *keys, "reason", "run_dir"])
    for row in rows:
        values = [as_text(row["values"][key]) if key in row["values"] else "" for key in keys]
        writer.writerow([*(row[column] for column in columns), *values, row["reason"], row["run_dir"]])
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    aside = path.with_suffix(f".{os.getpid()}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
