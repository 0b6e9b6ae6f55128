"""Sweeps over the quickstart's configuration whose trials are toys."""

import sys
from pathlib import Path

import pytest

from accel_train.tools.sweep.settings import Sweep, load_sweep

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
TOY = f"{sys.executable} {Path(__file__).with_name('toy_trial.py')}"
HILL = ["optimizer.towers.text.lr=log 1e-6 1e-1", "optimizer.towers.text.layer_decay=uniform 0.5 1.0"]
SCORE = "text_to_image_mean_recall"


@pytest.fixture
def make_sweep(tmp_path: Path):
    def make(search: list[str] = HILL, **options) -> Sweep:
        given = {"sweep_dir": str(tmp_path / "sweep"), "launch": TOY, "pruner": "none"} | options
        return load_sweep(CONFIG, [], given, search)

    return make
