"""Folders as runs leave them, with whatever curves and stories a test needs."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from accel_train.config.load import dump_config, load_config
from tests.short_runs import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SCORE = "text_to_image_mean_recall"
TOTAL = 100
GROUPS = {"image": "image", "image.no_decay": "image", "text": "text", "heads": "heads"}
LAUNCH = {"engine": "ddp", "world_size": 2, "device": "cpu, 1 threads", "versions": {"torch": "2.13.0"}}

MakeRun = Callable[..., Path]


def train_line(step: int, loss: float, **more: float) -> str:
    values: dict[str, Any] = {"step": step, "split": "train", "epoch": 0.0, "loss": loss, "loss/info_nce": loss}
    for name in GROUPS:
        values |= {f"lr/{name}": 1e-3 * (1 - step / TOTAL), f"grad_norm/{name}": 1 + 1 / step}
    values |= {"grad_norm": 3.0, "samples_per_second": 100.0 + step, "waiting_for_data": 0.05, "memory_gib": 1.5}
    return json.dumps(values | more)


def valid_line(step: int, score: float, **more: float) -> str:
    return json.dumps({"step": step, "split": "valid", SCORE: score, "text_to_image_recall@1": score / 2, **more})


def falling(seed: int = 0) -> list[str]:
    """Ten log steps and three evaluations: the loss falls, the score rises."""
    lines = [valid_line(0, 0.01)]
    for step in range(10, TOTAL + 1, 10):
        lines.append(train_line(step, 4 * math.exp(-step / 40) + 0.01 * seed))
        if step % 50 == 0:
            lines.append(valid_line(step, 0.006 * step + 0.01 * seed))
    return lines


def story(*lines: str, last: int = TOTAL, ending: str = "done: 100 steps; best x 0.6 at step 100") -> str:
    """run.log of one start, two seconds for each log step."""
    first = "2026-03-01 10:00:00 engine ddp (DataParallel) on 2 x cpu, fp32; a global batch of 128 is 2 ranks x ..."
    steps = [
        f"2026-03-01 10:{step // 30:02d}:{step * 2 % 60:02d} step {step}/{TOTAL}  epoch 0  loss 1.0  grad_norm 3"
        for step in range(10, last + 1, 10)
    ]
    return "\n".join([first, " a table   of groups", *steps, *lines, f"2026-03-01 10:05:00 {ending}" if ending else ""])


def groups() -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "tower": tower,
            "layer": 2,
            "num_layers": 3,
            "num_tensors": 4,
            "num_parameters": 1000,
            "lr": 1e-3,
            "weight_decay": 0.05,
            "max_grad_norm": None,
        }
        for name, tower in GROUPS.items()
    ]
    frozen = [{"tower": "teacher", "num_tensors": 2, "num_parameters": 500}]
    return {"phases": [{"phase": "first", "start": 0, "groups": rows, "frozen": frozen}]}


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_folder(
    folder: Path,
    *overrides: str,
    lines: Sequence[str] | None = None,
    log: str | None = None,
    config: Path = QUICKSTART,
) -> Path:
    """A run's folder, made with what it would hold."""
    folder.mkdir(parents=True)
    settings = load_config(config, [f"run_dir={folder}", *overrides])
    (folder / "config.yaml").write_text(dump_config(settings), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines or falling()), encoding="utf-8")
    (folder / "run.log").write_text(story() if log is None else log, encoding="utf-8")
    (folder / "groups.json").write_text(json.dumps(groups()), encoding="utf-8")
    (folder / "ledger.jsonl").write_text(
        json.dumps({"step": 0, "launch": LAUNCH, "chain": "x"}) + "\n" + '{"step": 1, "samples"', encoding="utf-8"
    )
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run("name", "key=value", lines=..., log=...): a run's folder."""
    return lambda name="run", *overrides, **given: make_folder(tmp_path / name, *overrides, **given)
