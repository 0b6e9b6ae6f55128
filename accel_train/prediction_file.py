"""Predictions of a split as a table: CSV, or JSON lines."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accel_train.errors import UserError
from accel_train.writable import check_result_file

SUFFIXES = (".csv", ".jsonl")


def check_prediction_file(file: Path) -> None:
    """Raises UserError for a name that `--predictions` can't write to."""
    check_result_file(file, "--predictions", SUFFIXES)
    if file.exists():
        raise UserError(f"--predictions: {file} exists already, and nothing is overwritten. Choose another name.")


def write_prediction_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line for each row, all with the same columns. Written aside and renamed over what was there."""
    aside = file.with_name(f".{file.name}.partial")
    try:
        with aside.open("w", encoding="utf-8", newline="") as stream:
            if file.suffix == ".csv":
                writer: csv.DictWriter[str] | None = None
                for row in rows:
                    if writer is None:
                        writer = csv.DictWriter(stream, row)
                        writer.writeheader()
                    writer.writerow(row)
            else:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
