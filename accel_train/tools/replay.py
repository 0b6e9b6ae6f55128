"""`accel-train replay`: one step of a run computed again on one process, to see where it stopped being finite.

The ordinary loop trains in a scratch folder from the checkpoint before that step. So the step meets the same weights,
samples and random draws as in the run, and nothing is written into the run's own folder.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accel_train.agreement import agree
from accel_train.checkpoint import files
from accel_train.checkpoint.files import DamagedCheckpoint
from accel_train.checkpoint.folders import all_folders
from accel_train.checkpoint.rollbacks import Rollback, as_rollback, is_abandoned, read_rollbacks, write_rollbacks
from accel_train.config.schema import RunConfig
from accel_train.engine.build import build_engine
from accel_train.errors import CheckFailed, UserError
from accel_train.json_text import read_json
from accel_train.nonfinite import report_path
from accel_train.run import Run
from accel_train.run_log import RunLog
from accel_train.set_up import next_phase, set_up
from accel_train.step import StepLosses
from accel_train.stopping import StopRequest
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.trained import open_config
from accel_train.train import advance, global_batches, save

NEVER = 10**9


def replay(run_dir: str, *, step: int, overrides: list[str], as_json: bool) -> None:
    """`step` is counted from 1, as in metrics.jsonl. Raises CheckFailed if it does not go as the run's report says."""
    folder = Path(run_dir)
    reported = read_report(folder, step)
    rollbacks = read_rollbacks(folder)
    if reported is not None:
        rollbacks = rollbacks[: reported["rollbacks"]]
    start = checkpoint_before(folder, step, rollbacks)
    with TemporaryDirectory(prefix="accel_train_replay_") as scratch:
        config = scratch_config(run_dir, overrides, scratch)
        if start is not None:
            (Path(scratch) / "checkpoints").mkdir()
            (Path(scratch) / "checkpoints" / start.name).symlink_to(start.resolve(), target_is_directory=True)
            write_rollbacks(Path(scratch), rollbacks)
        if not as_json:
            print(
                f"step {step} of {run_dir} from {start.name if start else 'its first step'} on one process", flush=True
            )
        losses = losses_of_step(config, step)
        found = read_report(Path(scratch), step)
    if as_json:
        print(json.dumps(found, indent=1))
    elif found is not None:
        print(f"{_in_words(found)}; losses: {_listed(found['losses'])}")
    else:
        print(f"loss and gradient are finite; losses: {_listed(losses)}")
    judge(found, reported)


def read_report(run_dir: Path, step: int) -> dict[str, Any] | None:
    """nonfinite/step_XXXXXXXX.json, if there is one. Raises UserError."""
    path = report_path(run_dir, step)
    if not path.exists():
        return None
    try:
        report: dict[str, Any] = read_json(path.read_text(encoding="utf-8"))
        if not isinstance(report["rollbacks"], int):
            raise TypeError("rollbacks is not a number")
        _ = report["first"]["where"], report["first"]["module"], report["losses"], _samples(report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a report of a step ({error!r}). Remove it to replay the step without it."
        ) from error
    return report


def checkpoint_before(run_dir: Path, step: int, rollbacks: list[Rollback]) -> Path | None:
    """The newest whole checkpoint that led to this step. None: it can be reached from the run's beginning alone."""
    for folder in all_folders(run_dir / "checkpoints"):
        try:
            saved = files.read_state(folder)
            known = [as_rollback(entry) for entry in saved["rollbacks"]]
            leads_there = known == rollbacks[: len(known)] and not is_abandoned(saved, rollbacks)
            if saved["step"] < step and leads_there:
                files.check_files(folder, saved)
                return folder
        except (DamagedCheckpoint, OSError, KeyError, TypeError):
            continue
    return None


def scratch_config(run_dir: str, overrides: list[str], scratch: str) -> RunConfig:
    """The run's configuration for one process, that only trains."""
    config = open_config(run_dir, overrides)
    changes = [
        f"run_dir={json.dumps(scratch)}",
        "engine=ddp",
        "zero.offload_optimizer=false",
        f"checkpoint={{save_every: {NEVER} steps}}",
        f"nonfinite={{max_in_a_row: {NEVER}}}",
        "log.trackers=[]",
        "max_hours=null",
    ]
    if config.data.valid_split is not None:
        nothing = "evaluate_every: null, at_start: false, early_stopping: null"
        best = json.dumps(config.evaluation.best_score)
        changes.append(f"evaluation={{{nothing}, best_score: {best}}}")
    return open_config(run_dir, [*overrides, *changes])


def losses_of_step(config: RunConfig, step: int) -> dict[str, float]:
    """Trains up to this step and returns its losses. Raises UserError for one that the run does not have."""
    engine = build_engine(config)
    log = RunLog(Path(config.run_dir), is_main=False, rank=engine.rank)
    try:
        run = set_up(config, engine, log, StopRequest(), fresh=False)
        if step > run.total_steps:
            raise UserError(f"--step: {step} is not a step of this run, which has {run.total_steps}.")
        with RowProgress("steps", step, done=run.state.step, shown=engine.is_main, unit="steps") as progress:
            while run.state.step < step:
                losses = _to_step_or_end_of_phase(run, step, progress)
                if run.state.step < step:
                    save(run)
                    next_phase(run)
        return {name: float(value) for name, value in losses.losses.items()}
    finally:
        log.close()
        engine.close()


def _to_step_or_end_of_phase(run: Run, step: int, progress: RowProgress) -> StepLosses:
    for batch in global_batches(run):
        losses, _ = advance(run, batch, agree(run, batch).rows)
        progress.advance()
        if run.state.step == step:
            break
    return losses


def judge(found: dict[str, Any] | None, reported: dict[str, Any] | None) -> None:
    """Compares with what the run reported. Raises CheckFailed."""
    if reported is None:
        return
    if found is None:
        raise CheckFailed(
            f"the run had {_in_words(reported)}, and here the step is finite: it was a fault of that machine, was injected, "
            "or hangs on rounding, which another number of ranks or another device changes."
        )
    if _samples(found) != _samples(reported):
        raise CheckFailed("the run took other samples in this step: the dataset or the configuration was changed.")
    if _place(found) != _place(reported):
        raise CheckFailed(f"the run had {_in_words(reported)} first, and here it is {_in_words(found)}.")


def _samples(report: dict[str, Any]) -> list[int]:
    return sorted(sample for rank in report["sample_ids"] for micro_batch in rank for sample in micro_batch)


def _place(report: dict[str, Any]) -> tuple[str, str | None]:
    return report["first"]["where"], report["first"]["module"]


def _in_words(report: dict[str, Any]) -> str:
    first = report["first"]
    module = f" of {first['module']} ({first['kind']})" if first["module"] else ""
    samples = f", samples {', '.join(map(str, first['sample_ids']))}" if first["sample_ids"] else ""
    return f"a {first['where']}{module} that is not finite{samples}"


def _listed(losses: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in losses.items())
