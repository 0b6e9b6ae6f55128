"""Back to the last good checkpoint, in the same processes, with lower learning rates for a while."""

from dataclasses import asdict
from pathlib import Path

from accel_train.checkpoint.rollbacks import Rollback, write_rollbacks
from accel_train.checkpoint.state import state_of
from accel_train.config.schema import interval_in_steps
from accel_train.errors import CheckFailed
from accel_train.run import Run
from accel_train.set_up import rebuild


def roll_back(run: Run, failure: CheckFailed) -> None:
    """Goes on from the newest checkpoint that was saved before the present row of skipped steps.

    From when rollbacks.json is on disk, a kill and a new start lead to the same place. Raises `failure`, with the reason, if
    there is no such checkpoint or this was done too often.
    """
    section, state = run.config.nonfinite, run.state
    if len(state.rollbacks) >= section.max_rollbacks:
        raise CheckFailed(
            f"{failure} The run has gone back {len(state.rollbacks)} times, as nonfinite.max_rollbacks allows."
        )
    found = run.checkpoints.newest_valid(lambda saved: saved["skipped_in_a_row"] == 0)
    if found is None:
        raise CheckFailed(f"{failure} There is no checkpoint from before to go back to (checkpoint.save_every).")
    folder, saved = found
    run.engine.whereabouts.begin("going back to a checkpoint")
    window = interval_in_steps(section.lr_window, run.order.steps_per_epoch)
    going_back = Rollback(state.step, saved["step"], saved["step"] + window, section.lr_factor)
    run.log.say(f"warning: {failure}")
    run.log.say(
        f"going back to {folder} after step {going_back.at}; learning rates are multiplied by {section.lr_factor:g} up to "
        f"step {going_back.until}"
    )
    run.engine.together(lambda: _make_lasting(run, [*state.rollbacks, going_back]))
    run.state = state_of({**saved, "rollbacks": [asdict(rollback) for rollback in [*state.rollbacks, going_back]]})
    run.log.rewind(run.state.step)
    rebuild(run, folder)


def _make_lasting(run: Run, rollbacks: list[Rollback]) -> None:
    if run.engine.is_main:
        try:
            write_rollbacks(Path(run.config.run_dir), rollbacks)
        except OSError as error:
            raise CheckFailed(
                f"{error.filename} can't be written: {error.strerror}. The run can't go back to an earlier checkpoint "
                "without it; mend the disk and start the same command again."
            ) from error
