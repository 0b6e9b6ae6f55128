"""A run set up in a folder of its own, from another run's checkpoints: nothing is written where they lie."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel_train.checkpoint.files import read_state
from accel_train.checkpoint.folders import all_folders
from accel_train.checkpoint.load import damage_at_a_glance
from accel_train.checkpoint.rollbacks import ROLLBACKS_FILE, is_abandoned, read_rollbacks
from accel_train.config.schema import RunConfig
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.interrupts import ending_by_sigterm
from accel_train.run import Run
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest


@contextmanager
def run_aside(config: RunConfig, engine: Engine, checkpoint: Path | None) -> Iterator[Run]:
    """The run of a configuration as `train` would set it up if its folder held this checkpoint alone, or none.

    Says nothing. Raises UserError.
    """
    with ending_by_sigterm(), tempfile.TemporaryDirectory(prefix="accel_train_verify_") as folder:
        root = Path(folder) / "checkpoints"
        root.mkdir()
        if checkpoint is not None:
            (root / checkpoint.name).symlink_to(checkpoint.resolve(), target_is_directory=True)
        rollbacks = Path(config.run_dir) / ROLLBACKS_FILE
        if rollbacks.exists():
            shutil.copy(rollbacks, folder)
        aside = config.model_copy(
            update={
                "run_dir": folder,
                "log": config.log.model_copy(update={"trackers": []}),
            }
        )
        log = RunLog(Path(folder), is_main=False, rank=engine.rank)
        try:
            yield _set_up(aside, engine, log, config.run_dir)
        finally:
            log.close()


def _set_up(aside: RunConfig, engine: Engine, log: RunLog, run_dir: str) -> Run:
    """What is refused is refused in the words of the run's own folder: the one aside is gone when they are read."""
    try:
        return set_up(aside, engine, log, StopRequest(), fresh=False)
    except UserError as error:
        raise type(error)(str(error).replace(aside.run_dir, run_dir), code=error.code) from error


def newest_checkpoint(config: RunConfig, engine: Engine) -> Path | None:
    """The one from which `train` would go on, by rank 0's word. Nothing is renamed or tidied up."""
    found = engine.together(lambda: usable_checkpoints(config) if engine.is_main else [])
    return engine.gather_objects(found[0] if found else None)[0]


def usable_checkpoints(config: RunConfig) -> list[Path]:
    """A run's checkpoints, the newest first, that look whole and that the run has not gone back behind."""
    rollbacks = read_rollbacks(Path(config.run_dir))
    return [
        folder
        for folder in all_folders(Path(config.run_dir) / "checkpoints")
        if damage_at_a_glance(folder) is None and not is_abandoned(read_state(folder), rollbacks)
    ]
