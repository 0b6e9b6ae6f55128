"""`accel-train report`: a page about one run or several."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_train.errors import UserError
from accel_train.tools.page.page import page
from accel_train.tools.report import comparison, one_run
from accel_train.tools.report.facts import as_json
from accel_train.tools.report.record import Record, read_record

PAGE = "report.html"


def report_command(runs: Sequence[str], *, output: str | None, as_json_: bool) -> None:
    """Writes the page, and prints where it is, or everything on it as JSON. Raises UserError."""
    folders = [Path(run) for run in runs]
    doubles = [str(folder) for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1]
    if doubles:
        raise UserError(f"{doubles[0]} is given more than once. Give each run once.")
    target = Path(output) if output else (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if output and not target.parent.is_dir():
        raise UserError(f"--output: {target.parent} is no folder. Make it first, or choose another.")
    if target.is_dir():
        raise UserError(f"--output: {target} is a folder; it must name the file of the page.")
    records = [read_record(folder) for folder in folders]
    comparison.name_apart(records)
    for record in records:
        for complaint in record.complaints:
            print(f"warning: {complaint}", file=sys.stderr)
    write_page(target, _html(records))
    if as_json_:
        runs_as_json = [as_json(record) for record in records]
        together = {"comparison": comparison.as_json(records)} if len(records) > 1 else {}
        print(json.dumps(plain({"page": str(target), "runs": runs_as_json, **together}), indent=1, ensure_ascii=False))
    else:
        print(f"{target}: {', '.join(one_run.in_a_line(record) for record in records)}")


def _html(records: Sequence[Record]) -> str:
    if len(records) == 1:
        return page(records[0].name, one_run.sections(records[0]), subtitle=one_run.subtitle(records[0]))
    return page(
        f"{len(records)} runs", comparison.sections(records), subtitle=", ".join(record.name for record in records)
    )


def write_page(target: Path, html: str) -> None:
    """Complete or as it was. Raises UserError."""
    aside = target.with_name(f".{target.name}.partial")
    try:
        aside.write_text(html, encoding="utf-8", errors="replace")
        aside.replace(target)
    except OSError as error:
        raise UserError(
            f"{target} can't be written: {error.strerror}. Name another place with --output FILE."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """JSON has no infinite numbers: they are null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
