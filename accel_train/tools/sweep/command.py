"""`accel-train sweep`: a search over configuration keys, each trial a training run of its own."""

import json
import os
from importlib.util import find_spec
from typing import Any

from rich.console import Console

from accel_train.errors import CheckFailed, Stopped, UserError
from accel_train.tools.sweep.settings import Sweep, load_sweep


def sweep_command(
    path: str,
    *,
    overrides: list[str],
    options: dict[str, Any],
    search: list[str],
    workers: int,
    is_one_of_several: bool,
    as_json: bool,
    argv: list[str],
) -> None:
    """Works on the sweep until it has its trials, then shows what was found. Raises UserError, CheckFailed, Stopped.

    `argv` starts the same command again, for workers of which each is a process.
    """
    _check_packages()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "sweep starts the ranks of each trial by itself: start it once, without a launcher, and give the launcher's "
            "command as --launch."
        )
    sweep = load_sweep(path, overrides, options, search)
    score = _score(sweep)

    # These import optuna and torch.
    from accel_train.tools.sweep.local_workers import run_workers
    from accel_train.tools.sweep.worker import work

    console = Console(stderr=as_json, highlight=False)
    try:
        if workers > 1:
            run_workers(sweep, argv, workers, as_json=as_json)
        else:
            work(sweep, score, console, show_progress=not is_one_of_several)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CheckFailed(
            f"sweep_dir: {sweep.folder} can't be written: {error}. Make it writable, with space left, and start the same "
            "command again: the trial that was running goes on."
        ) from error
    except (CheckFailed, Stopped):
        if not is_one_of_several:
            _show(sweep, score, console, as_json=as_json)
        raise
    if not is_one_of_several:
        check_found(_show(sweep, score, console, as_json=as_json))


def _show(sweep: Sweep, score: str, console: Console, *, as_json: bool) -> dict[str, Any]:
    """The results so far, at a sweep's end or when it was asked to stop. Returns the summary."""
    from accel_train.tools.sweep.pictures import draw_pictures
    from accel_train.tools.sweep.results import BEST, TRIALS, summary, table, write_results
    from accel_train.tools.sweep.study import open_study

    study = open_study(sweep)
    write_results(study, sweep, score)
    found = summary(study, sweep, score)
    pictures = draw_pictures(found, sweep)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return found
    if len(found["trials"]) > found["counts"]["running"]:
        console.print(table(found))
        files = [sweep.folder / TRIALS, *pictures, *([sweep.folder / BEST] if found["best"] else [])]
        console.print("written: " + ", ".join(str(file) for file in files), soft_wrap=True)
    if unfinished := found["counts"]["running"]:
        trials = "1 trial is" if unfinished == 1 else f"{unfinished} trials are"
        console.print(f"{trials} not over: run by another worker, or to be taken up by the next one.", soft_wrap=True)
    return found


def check_found(found: dict[str, Any]) -> None:
    """Raises CheckFailed if all trials are over and none is complete."""
    if found["best"] is None and not found["counts"]["running"]:
        reasons = [trial["reason"] for trial in found["trials"] if trial["reason"]]
        last = f"; the last reason: {reasons[-1]}" if reasons else "."
        raise CheckFailed(f"none of the {len(found['trials'])} trials is complete{last}")


def _score(sweep: Sweep) -> str:
    """The name of what is maximised, which the task knows. Raises UserError for one that it does not give."""
    from accel_train.tasks.build import build_task

    return build_task(sweep.base).best_score


def _check_packages() -> None:
    for package in ("optuna", "matplotlib"):
        if find_spec(package) is None:
            raise UserError(f"sweep needs {package}: pip install 'accel_train[sweep]'", code="AT203")
