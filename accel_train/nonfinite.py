"""Steps whose loss or gradient is not finite: all ranks pass over them together, and say what there is to know of each."""

import json
import math
import os
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_train.checkpoint.folders import all_folders
from accel_train.data.loader import Step
from accel_train.errors import CheckFailed
from accel_train.first_nonfinite import Sighting, watching
from accel_train.gradients import losses_finite, share_of
from accel_train.run import Run
from accel_train.step import StepLosses, forward_backward

REPORTS = "nonfinite"
"""Folder of the reports in a run's folder."""
NAMED = 4
"""So many groups or samples are named in a line of the log; the report has all of them."""


def report_path(run_dir: Path, step: int) -> Path:
    """`step` is counted from 1, as in metrics.jsonl."""
    return run_dir / REPORTS / f"step_{step:08d}.json"


def pass_over(run: Run, batch: Step, counts: list[int], losses: StepLosses, norms: Tensor) -> None:
    """Takes no update from this batch, on any rank, and leaves a report. The caller puts the model's buffers back."""
    state, step = run.state, run.state.step + 1
    run.engine.discard_gradients()
    state.skipped = [*state.skipped, step]
    state.skipped_in_a_row += 1
    found = find_first(run, batch, counts)
    report = report_of(run, batch, losses, norms, found)
    if run.engine.is_main:
        path = report_path(Path(run.config.run_dir), step)
        try:
            _write(path, report)
        except OSError as error:
            run.log.warn(f"{path} can't be written: {error.strerror}")
    samples = report["first"]["sample_ids"]
    named = (
        f"; samples {', '.join(map(str, samples[:NAMED]))}{' ...' if len(samples) > NAMED else ''}" if samples else ""
    )
    run.log.say(
        f"warning: step {step} is skipped by all ranks ({state.skipped_in_a_row} in a row): {in_words(run, losses, norms)}. "
        f"First: {found.in_words()}{named}. {report_path(Path(run.config.run_dir), step)} has the rest; "
        f"`{report['command']}` computes it again on one process."
    )
    run.log.metrics(step, "skipped", {"epoch": float(batch.epoch), "in_a_row": float(state.skipped_in_a_row)})


def find_first(run: Run, batch: Step, counts: list[int]) -> Sighting:
    """Computes the same step again under hooks, on all ranks together, and throws its gradients away."""
    engine, share = run.engine, share_of(run, batch)
    engine.loss_scale = 1.0  # a larger one might overflow where the step itself did not
    with watching(engine.bare_model(), engine.rank) as watch:

        def draw(j: int) -> AbstractContextManager[None]:
            watch.micro_batch, watch.num_rows = j, len(share.micro_batches[j]["sample_id"])
            return share.draw(j)

        losses = forward_backward(engine, run.task, share.micro_batches, counts, draw)
        finite = losses_finite(losses)
    engine.discard_gradients()
    sightings: list[Sighting] = engine.gather_objects(watch.first(losses_are_finite=finite))
    return min(sightings, key=lambda sighting: sighting.place)


def report_of(run: Run, batch: Step, losses: StepLosses, norms: Tensor, found: Sighting) -> dict[str, Any]:
    """What nonfinite/step_XXXXXXXX.json holds; the same on every rank."""
    engine, state, step = run.engine, run.state, run.state.step + 1
    mine = [part["sample_id"].tolist() for part in batch.micro_batches]
    sample_ids: list[list[list[int]]] = engine.gather_objects(mine)
    ids = [] if found.micro_batch is None else sample_ids[found.rank][found.micro_batch]
    checkpoints = engine.gather_objects([folder.name for folder in all_folders(run.checkpoints.root)])[0]
    weights = engine.gather_objects(
        sorted({shard.name for shard in engine.shards(()) if not torch.isfinite(shard.weight).all()})
    )
    return {
        "step": step,
        "epoch": batch.epoch,
        "losses": {name: _plain(float(value)) for name, value in losses.losses.items()},
        "groups": bad_groups(run, norms),
        "grad_norms": {
            group["name"]: _plain(norm)
            for group, norm in zip(engine.optimizer.param_groups, norms.tolist(), strict=True)
        },
        "first": {
            "where": found.where,
            "module": found.module,
            "kind": found.kind,
            "rank": found.rank,
            "micro_batch": found.micro_batch,
            "sample_ids": [ids[row] for row in found.rows] if found.rows else ids,
        },
        "weights": sorted(set().union(*weights)),
        "sample_ids": sample_ids,
        "engine": engine.launch.engine,
        "world_size": engine.world_size,
        "skipped_in_a_row": state.skipped_in_a_row,
        "rollbacks": len(state.rollbacks),
        "checkpoint": checkpoints[0] if checkpoints else None,
        "command": f"accel-train replay {shlex.quote(run.config.run_dir)} --step {step}",
    }


def bad_groups(run: Run, norms: Tensor) -> list[str]:
    """Names of the groups whose gradient is not finite."""
    groups = zip(run.engine.optimizer.param_groups, norms.tolist(), strict=True)
    return [group["name"] for group, norm in groups if not math.isfinite(norm)]


def in_words(run: Run, losses: StepLosses, norms: Tensor) -> str:
    """What is not finite."""
    names = bad_groups(run, norms)
    values = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.losses.items())
    listed = f" ({', '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''})" if names else ""
    return f"the gradient of {len(names)} of {len(norms)} groups is not finite{listed}; losses: {values}"


def too_many(run: Run, losses: StepLosses, norms: Tensor) -> CheckFailed:
    """For a run that stops here, after the step was counted."""
    state, allowed = run.state, run.config.nonfinite.max_in_a_row
    remedy = "lower the learning rate or clip (optimizer.max_grad_norm), and start the same command again."
    if state.skipped_in_a_row == state.step and not losses_finite(losses):
        remedy = (
            "no step has gone well before, so no rate is to blame: look at the data and at how the loss is computed."
        )
    elif allowed:
        remedy = f"look at {Path(run.config.run_dir) / REPORTS}; {remedy}"
    return CheckFailed(
        f"step {state.step}: {in_words(run, losses, norms)}. This is the {state.skipped_in_a_row}. step in a row, and "
        f"nonfinite.max_in_a_row is {allowed}. No weight was changed by such a step, and the last checkpoint, if there is "
        f"one, is good: {remedy}",
        code="AT600",
    )


def _plain(value: float) -> float | str:
    """A number that JSON can hold, or its name."""
    return value if math.isfinite(value) else str(value)


def _write(path: Path, report: dict[str, Any]) -> None:
    """Complete or absent. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
