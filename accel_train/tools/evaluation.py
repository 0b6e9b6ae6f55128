"""`accel-train evaluate`: scores of a run or an export on any split, and a picture of what it finds."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.schema import RunConfig
from accel_train.data.splits import open_split
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.evaluate import Evaluation, evaluate
from accel_train.prediction_file import check_prediction_file, write_prediction_rows
from accel_train.preflight import preflight
from accel_train.progress import score_table
from accel_train.tasks.task import Task
from accel_train.tools.contact_sheet import Found, contact_sheet
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.trained import open_config, open_trained
from accel_train.writable import check_result_file

NUM_QUERIES = 8
NUM_ANSWERS = 5


def evaluate_command(
    source: str,
    *,
    split: str | None,
    overrides: list[str],
    as_json: bool,
    contact_sheet: str | None,
    predictions: str | None,
    checkpoint: str | None,
) -> dict[str, float]:
    """Scores the split over all ranks and prints a table or JSON; draws a contact sheet and writes predictions if asked.

    Returns the scores.
    """
    if contact_sheet is not None:
        check_result_file(Path(contact_sheet), "--contact-sheet", [".png"])
    config = open_config(source, overrides)
    split = split or config.data.valid_split
    if split is None:
        raise UserError("data.valid_split is null; name a split with --split.")
    if contact_sheet is not None and not isinstance(config, ContrastiveConfig):
        raise UserError(f"--contact-sheet draws images found for texts; the task {config.task} has none.")
    if predictions is not None:
        check_prediction_file(Path(predictions))
    engine = build_engine(config, for_evaluation=True)
    try:
        preflight(engine, config, None)
        trained = open_trained(source, config, checkpoint=checkpoint)
        if predictions is not None and not trained.task.has_prediction_rows:
            raise UserError(
                f"--predictions: the task {config.task} has no table of predictions, except for --zero-shot."
            )
        notes = trained.task.check_splits(trained.model, [split])
        engine.hold(trained.model, precision=config.precision)
        outcome = evaluate_with_bar(engine, trained.task, split, config)
        if engine.is_main:
            for note in notes:
                print(note, file=sys.stderr)
            if as_json:
                about = {"source": trained.source, "step": trained.step, "data": config.data.path, "split": split}
                print(json.dumps({**about, "scores": outcome.scores}, indent=1))
            else:
                Console(highlight=False).print(score_table(outcome.scores, f"{trained.source} on {split}"))
            if predictions is not None:
                write_prediction_rows(Path(predictions), trained.task.prediction_rows(outcome.predictions, split))
            if contact_sheet is not None:
                recall = outcome.scores["text_to_image_mean_recall"]
                subtitle = f"{trained.source}, split {split}: mean recall {recall:.1%}"
                draw_contact_sheet(outcome.predictions, config.data.path, split, contact_sheet, subtitle)
                if not as_json:
                    print(f"contact sheet: {contact_sheet}")
    finally:
        engine.close()
    return outcome.scores


def evaluate_with_bar(engine: Engine, task: Task, split: str, config: RunConfig) -> Evaluation:
    """Counts this rank's rows, of which every rank has as many."""
    total = sum(-(-len(dataset) // engine.world_size) for dataset in task.evaluation_sets(split))
    with RowProgress(f"evaluating {split}", total, shown=engine.is_main) as progress:
        return evaluate(engine, task, split, config, progress.advance)


def draw_contact_sheet(predictions: dict[str, Tensor], path: str, split: str, file: str, subtitle: str) -> None:
    """Text queries from all over the split with the images nearest to them. Takes a task's retrieval predictions."""
    opened = open_split(path, split)
    right: dict[int, set[int]] = defaultdict(set)
    for image_row, text_row in opened.matches().tolist():
        right[text_row].add(image_row)
    chosen = torch.linspace(0, len(predictions["text_row"]) - 1, min(NUM_QUERIES, opened.num_texts)).long()
    similarity = predictions["text_features"][chosen] @ predictions["image_features"].T
    best = similarity.topk(min(NUM_ANSWERS, opened.num_images))
    queries = []
    for text_row, scores, places in zip(
        predictions["text_row"][chosen].tolist(), best.values.tolist(), best.indices, strict=True
    ):
        rows = predictions["image_row"][places].tolist()
        found = [
            Found(opened.images.value("image", row), score, row in right[text_row])
            for row, score in zip(rows, scores, strict=True)
        ]
        queries.append((opened.texts.value("text", text_row), found))
    contact_sheet(queries, subtitle=subtitle).save(file)
