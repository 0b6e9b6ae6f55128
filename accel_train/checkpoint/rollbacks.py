"""Where a run went back to an earlier checkpoint: `rollbacks.json` in its folder, and what follows from it.

The file is on disk before training goes on, so a kill at any moment finds the run either before or after a rollback.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accel_train.checkpoint import files
from accel_train.errors import UserError
from accel_train.json_text import read_json

ROLLBACKS_FILE = "rollbacks.json"


@dataclass(frozen=True, slots=True)
class Rollback:
    at: int
    """The step, counted as in metrics.jsonl, after which the run went back."""
    to: int
    """The step of the checkpoint that it went back to."""
    until: int
    """The last step with lower learning rates."""
    lr_factor: float


def lr_reduction(step: int, rollbacks: Sequence[Rollback]) -> float:
    """What rollbacks multiply every learning rate by in the step that follows `step` ones. Windows that overlap multiply."""
    factor = 1.0
    for rollback in rollbacks:
        if rollback.to <= step < rollback.until:
            factor *= rollback.lr_factor
    return factor


def is_abandoned(saved: dict[str, Any], rollbacks: Sequence[Rollback]) -> bool:
    """Whether a checkpoint, by its state.json, holds steps that the run has gone back behind since."""
    return any(saved["step"] > later.to for later in rollbacks[len(saved["rollbacks"]) :])


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """All rollbacks of a run, the first one first. Raises UserError for a file that was changed."""
    path = run_dir / ROLLBACKS_FILE
    if not path.exists():
        return []
    try:
        return [as_rollback(entry) for entry in read_json(path.read_text(encoding="utf-8"))["rollbacks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read ({error!r}). It says where the run went back to an earlier checkpoint, so training on "
            "without it would be another run. Restore it, or start a new run_dir with initialize_from."
        ) from error


def write_rollbacks(run_dir: Path, rollbacks: Sequence[Rollback]) -> None:
    """Replaces the file in one step. Raises OSError."""
    path = run_dir / ROLLBACKS_FILE
    aside = path.with_suffix(".new")
    files.write_json(aside, {"rollbacks": [asdict(rollback) for rollback in rollbacks]})
    aside.replace(path)
    files.sync(run_dir)


def as_rollback(entry: dict[str, Any]) -> Rollback:
    """From JSON. Raises KeyError or TypeError."""
    values = {field.name: entry[field.name] for field in fields(Rollback)}
    if not all(type(value) in (int, float) for value in values.values()):
        raise TypeError(f"a rollback holds numbers: {values}")
    return Rollback(**values)
