"""Scores of a whole split, computed over all ranks, each sample counted once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from accel_train.config.schema import RunConfig
from accel_train.data.loader import evaluation_batches
from accel_train.engine.engine import Engine
from accel_train.optim.param_groups import set_train_mode
from accel_train.tasks.contract import check_predictions, check_scores
from accel_train.tasks.task import Task


@dataclass(slots=True)
class Evaluation:
    scores: dict[str, float]
    predictions: dict[str, Tensor]
    """Rows of the whole split on the CPU; empty except on rank 0."""


@torch.no_grad()
def evaluate(
    engine: Engine, task: Task, split: str, config: RunConfig, advance: Callable[[int], None] | None = None
) -> Evaluation:
    """Runs the split through the model and scores it on rank 0; every rank returns the same scores.

    `advance` is told of this rank's rows as they are done, for a bar. Recall and rank correlations are not averages over
    batches, so predictions are joined first and scored once.
    """
    engine.whereabouts.begin(f"evaluation of {split}")
    engine.share_buffers()
    bare = engine.bare_model()
    bare.eval()
    kept: dict[str, list[Tensor]] = {}
    for dataset in task.evaluation_sets(split):
        batches = evaluation_batches(
            dataset,
            rank=engine.rank,
            world_size=engine.world_size,
            batch_size=config.evaluation.batch_size or config.data.micro_batch_size,
            num_workers=config.data.num_workers,
            start_method=config.data.worker_start_method,
            prefetch_batches=config.data.prefetch_batches,
            pin_memory=engine.device.type == "cuda",
        )
        # Every rank has as many batches; a sample that one rank can't read stops all of them before the next collective.
        while (batch := engine.together(partial(next, batches, None))) is not None:
            engine.whereabouts.move()
            batch = task.add_to_batch(engine.to_device(batch))
            rows = batch.pop("row")
            found = task.predictions(engine.model(batch), batch)
            check_predictions(task, found, len(rows))
            if advance is not None:
                advance(len(rows))
            _keep(engine, {**found, "row": rows}, kept)
    set_train_mode(bare)
    predictions = {name: torch.cat(pieces) for name, pieces in kept.items()}
    scores = engine.together(lambda: _scores(task, predictions, split) if engine.is_main else {})
    return Evaluation(engine.gather_objects(scores)[0], predictions)


def _scores(task: Task, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
    scores = task.scores(predictions, split)
    check_scores(task, scores)
    return scores


def _keep(engine: Engine, found: dict[str, Tensor], kept: dict[str, list[Tensor]]) -> None:
    """Joins the ranks' rows, equally many on each, and drops the ones that only fill up a rank's last batches."""
    counts = [len(found["row"])] * engine.world_size
    real = engine.gather_rows(found.pop("row"), counts) >= 0
    for name, column in found.items():
        joined = engine.gather_rows(column, counts)
        if engine.is_main:
            kept.setdefault(name, []).append(joined[real].cpu())
