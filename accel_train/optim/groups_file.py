"""`groups.json` in a run's folder: the parameter groups of each phase so far, for who looks at the run later."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.json_text import read_json

if TYPE_CHECKING:
    from accel_train.optim.param_groups import GroupPlan

GROUPS_FILE = "groups.json"


def write_groups(run_dir: Path, phase: str, start: int, plan: "GroupPlan") -> None:
    """Adds the phase that begins at this step; what was said of it or of later ones before is replaced. Raises OSError."""
    path = run_dir / GROUPS_FILE
    entry = {"phase": phase, "start": start, "groups": _groups(plan), "frozen": _frozen(plan)}
    phases = [*(known for known in read_groups(run_dir) if known["start"] < start), entry]
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps({"phases": phases}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_groups(run_dir: Path) -> list[dict[str, Any]]:
    """The phases in order; none where there is no such file, or one that was changed into something else."""
    try:
        phases = read_json((run_dir / GROUPS_FILE).read_text(encoding="utf-8"))["phases"]
        return [phase for phase in phases if isinstance(phase["start"], int) and phase["groups"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _groups(plan: "GroupPlan") -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "tower": group.tower,
            "layer": group.layer,
            "num_layers": group.num_layers,
            "num_tensors": len(group.param_names),
            "num_parameters": group.num_parameters,
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "max_grad_norm": group.max_grad_norm,
        }
        for group in plan.groups
    ]


def _frozen(plan: "GroupPlan") -> list[dict[str, Any]]:
    return [
        {"tower": part.tower, "num_tensors": len(part.param_names), "num_parameters": part.num_parameters}
        for part in plan.frozen_parts
    ]
