"""Starts the program for a few steps, as a user would, and reads what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def train(
    config: Path, run_dir: Path, *overrides: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`accel-train train` in a process of its own, with further environment variables. It may fail: look at returncode."""
    command = [sys.executable, "-m", "accel_train", "train", str(config), f"run_dir={run_dir}", *overrides]
    variables = os.environ | (environment or {})
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def metrics(run_dir: Path, split: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl of one split."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]
