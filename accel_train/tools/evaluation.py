"""`accel-train evaluate`: scores of a run or an export on any split."""

import json

from rich.console import Console

from accel_train.data.pairs import open_split
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.evaluate import Evaluation, evaluate
from accel_train.progress import score_table
from accel_train.tools.contact_sheet import Found, contact_sheet
from accel_train.tools.trained import open_config, open_trained

NUM_QUERIES = 8
NUM_ANSWERS = 5


def evaluate_command(
    run_or_export: str,
    *,
    split: str | None,
    overrides: list[str],
    as_json: bool,
    contact_sheet: str | None,
    checkpoint: str,
) -> dict[str, float]:
    """Scores the split over all ranks, prints a table or JSON, and draws a contact sheet if asked. Returns the scores."""
    config = open_config(run_or_export, overrides)
    split = split or config.data.valid_split
    if split is None:
        raise UserError("data.valid_split is null; name a split with --split.")
    engine = build_engine(config, for_evaluation=True)
    try:
        trained = open_trained(run_or_export, config, checkpoint=checkpoint)
        engine.hold(trained.model, precision=config.precision)
        outcome = evaluate(engine, trained.task, split, config)
        if engine.is_main:
            if as_json:
                about = {"source": trained.source, "step": trained.step, "data": config.data.path, "split": split}
                print(json.dumps({**about, "scores": outcome.scores}, indent=1))
            else:
                Console(highlight=False).print(score_table(outcome.scores, f"{trained.source} on {split}"))
            if contact_sheet is not None:
                draw(outcome, config.data.path, split, contact_sheet)
    finally:
        engine.close()
    return outcome.scores
