"""The study of a sweep: Optuna's journal in the sweep's folder, shared by all workers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import Trial, TrialState

from accel_train.config.load import ABSENT, config_changes, leaves, read_mapping
from accel_train.config.yaml_text import write_yaml
from accel_train.errors import UserError
from accel_train.stopping import STOP_FILE, StopRequest
from accel_train.tools.sweep.locks import PROCESS, WORKER, Claim, locked, try_lock
from accel_train.tools.sweep.settings import Sweep
from accel_train.tools.sweep.space import Choice, Range, as_text

JOURNAL, LOCK, RECORD = "journal.log", "sweep.lock", "sweep.yaml"
NAME = "sweep"
POLL_SECONDS = 0.5
FIRST_JUDGED = 2
"""The first evaluation at which the median pruner may end a trial; before it, most of a warmup may lie ahead."""


class JournalLock(JournalFileOpenLock):
    """The kernel's lock instead of Optuna's lock file, which a killed worker would leave behind for half a minute.

    The end of a line that a kill or a full disk has torn is cut off, since the next line would be appended to it.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._path = journal.with_suffix(".lock")

    def acquire(self) -> bool:
        self._held = locked(self._path)
        self._held.__enter__()
        _cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        self._held.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Taken:
    """A trial that this worker is to run: a new one, or one that a dead worker left behind."""

    trial: Trial
    values: dict[str, Any]
    """Of the searched keys."""
    folder: Path
    claim: Claim
    is_new: bool


def open_study(sweep: Sweep) -> optuna.Study:
    """Makes the study, or opens the one that is there. Raises UserError if that one is another sweep's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with locked(sweep.folder / LOCK):
            _check_same(sweep)
            journal = sweep.folder / JOURNAL
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))
            return optuna.create_study(
                study_name=NAME,
                storage=storage,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(sweep.settings.pruner),
            )
    except OSError as error:
        raise UserError(
            f"sweep_dir: {sweep.folder} can't be used: {error}. Choose another folder, or mend it."
        ) from error


def take_trial(study: optuna.Study, sweep: Sweep, stop: StopRequest) -> Taken | None:
    """A trial whose worker has died, else a new one.

    None when as many as asked for have been started, or when this worker is asked to stop.
    """
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = trial_folder(sweep, left.number)
        with locked(sweep.folder / LOCK):
            # A new trial is made and claimed under this lock, so it never looks as if it were left behind.
            worker = try_lock(folder / WORKER)
        if worker is None:
            continue
        while (process := try_lock(folder / PROCESS)) is None:
            if stop.signal is not None:
                worker.close()
                return None
            (folder / STOP_FILE).touch()  # it trains on without a worker: it shall save and leave
            time.sleep(POLL_SECONDS)
        claim = Claim(worker, process)
        if study.get_trials(deepcopy=False)[left.number].state is TrialState.RUNNING:
            study.sampler = _sampler(sweep, left.number)
            trial = Trial(study, left._trial_id)
            return Taken(trial, _values(trial, sweep), folder, claim, is_new=False)
        claim.release()
    return _new_trial(study, sweep)


def _new_trial(study: optuna.Study, sweep: Sweep) -> Taken | None:
    """One worker at a time counts and samples, so no trial too many is started and each knows of those before it."""
    with locked(sweep.folder / LOCK):
        number = sum(trial.state is not TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        if number >= sweep.settings.trials:
            return None
        study.sampler = _sampler(sweep, number)
        if number == 0 and (own := own_values(sweep)) is not None:
            study.enqueue_trial(own, skip_if_exists=True)
        trial = study.ask()
        folder = trial_folder(sweep, trial.number)
        worker, process = try_lock(folder / WORKER), try_lock(folder / PROCESS)
        if worker is None or process is None:
            raise UserError(
                f"sweep_dir: {folder} is held by another process, though its trial is new. End that process."
            )
        return Taken(trial, _values(trial, sweep), folder, Claim(worker, process), is_new=True)


def trial_folder(sweep: Sweep, number: int) -> Path:
    return sweep.folder / "trials" / f"{number:04d}"


def own_values(sweep: Sweep) -> dict[str, Any] | None:
    """What the configuration itself has for the searched keys, in the study's words; None if one lies outside its range.

    Trial 0 has them, so that a sweep never ends below the configuration it began with.
    """
    own = leaves(sweep.base.model_dump())
    if not all(key in own and part.holds(own[key]) for key, part in sweep.space.searched.items()):
        return None
    return {
        key: part.texts()[part.texts().index(as_text(own[key]))] if isinstance(part, Choice) else own[key]
        for key, part in sweep.space.searched.items()
    }


def values_of(params: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """A trial's parameters as the configuration has them."""
    searched = sweep.space.searched
    return {key: _plain(searched[key], value) for key, value in params.items()}


def _values(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """Samples what the trial has no value of yet."""
    return {key: _plain(part, _suggest(trial, key, part)) for key, part in sweep.space.searched.items()}


def _suggest(trial: Trial, key: str, part: Range | Choice) -> Any:
    if isinstance(part, Choice):
        return trial.suggest_categorical(key, part.texts())
    if part.kind == "int":
        return trial.suggest_int(key, int(part.low), int(part.high), step=part.step)
    return trial.suggest_float(key, part.low, part.high, log=part.kind == "log")


def _plain(part: Range | Choice, value: Any) -> Any:
    return part.values[part.texts().index(value)] if isinstance(part, Choice) else value


def _sampler(sweep: Sweep, number: int) -> TPESampler:
    """Seeded by the trial's number, so that workers don't draw the same values, and one worker draws the same every time."""
    return TPESampler(seed=(sweep.settings.seed * 1_000_003 + number) % 2**32)


def _pruner(name: str) -> BasePruner:
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=FIRST_JUDGED)
    return (
        HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3) if name == "hyperband" else NopPruner()
    )


def _check_same(sweep: Sweep) -> None:
    """Writes down what makes this sweep, or compares it with what is written down. Raises UserError."""
    path = sweep.folder / RECORD
    settings = sweep.settings
    base = {key: value for key, value in sweep.base.model_dump(mode="json").items() if key != "run_dir"}
    mine = {"pruner": settings.pruner, "seed": settings.seed, "search": settings.search, "config": base}
    if not path.exists():
        if (sweep.folder / JOURNAL).exists() or (sweep.folder / "metrics.jsonl").exists():
            raise UserError(f"sweep_dir: {sweep.folder} holds something else than a sweep. Choose another folder.")
        aside = path.with_suffix(f".{os.getpid()}.partial")
        aside.write_text(write_yaml(mine), encoding="utf-8")
        aside.replace(path)
        return
    changes = config_changes(read_mapping(path), mine)
    if changes:
        listed = "; ".join(
            f"{key} {'was absent' if old == ABSENT else f'was {old!r}'}, "
            f"{'is absent' if new == ABSENT else f'is {new!r}'}"
            for key, old, new in changes
        )
        raise UserError(
            f"sweep_dir: {sweep.folder} holds a sweep with other settings, and its trials could not be compared with new "
            f"ones: {listed}. Restore these values, or choose another sweep_dir."
        )


def _cut_torn_line(journal: Path) -> None:
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content_end = file.seek(0, os.SEEK_END)
        if content_end == 0:
            return
        file.seek(content_end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
