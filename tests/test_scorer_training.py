"""The chain of two runs: a CLIP is trained on captions, and a scorer on top of it learns what the mean rating can't say."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rated import write_dataset
from tests.short_runs import ROOT, metrics, train

pytestmark = pytest.mark.slow

SMALL_IMAGES = ["data.image_size=32", "data.num_workers=0"]


def test_a_scorer_on_a_clip_that_was_trained_before(tmp_path: Path) -> None:
    clip, run_dir, dataset = tmp_path / "clip", tmp_path / "scorer", write_dataset(tmp_path / "rated", 240)
    few = ["num_epochs=null", "max_steps=4", "data.global_batch_size=16", "data.micro_batch_size=16"]
    done = train(ROOT / "configs" / "quickstart.yaml", clip, *SMALL_IMAGES, *few, "evaluation.at_start=false")
    assert done.returncode == 0, done.stdout + done.stderr

    settings = [f"data.path={dataset}", *SMALL_IMAGES, "num_epochs=null", "max_steps=60"]
    intervals = ["evaluation.evaluate_every=30 steps", "checkpoint.save_every=null"]
    config = ROOT / "configs" / "small" / "scorer.yaml"
    done = train(config, run_dir, *settings, *intervals, f"initialize_from={clip}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"weights from {clip.resolve()}" in done.stdout and "into clip.*" in done.stdout
    first, *_, last = metrics(run_dir, "valid")
    assert first["srocc_quality"] == 0  # the mean rating
    assert last["srocc_quality"] > 0.3, last

    export = tmp_path / "export"
    command([sys.executable, "-m", "accel_train", "export", str(run_dir), str(export), "--checkpoint", "latest"])
    evaluate = [sys.executable, "-m", "accel_train", "evaluate", str(export), "--json"]
    scores = json.loads(command([*evaluate, "--predictions", str(tmp_path / "predictions.csv")]))["scores"]
    assert scores == pytest.approx({name: last[name] for name in scores}, abs=1e-6)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert {"image_id", "prompt", "quality_rated", "quality_predicted"} <= set(next(csv.DictReader(file)))


def command(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
