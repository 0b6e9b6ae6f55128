"""A run that skips a step, is stopped and goes on, by the program itself: what is told of it from the files it leaves."""

import json
from pathlib import Path

import pytest
import yaml

from accel_train.tools.report.facts import facts_of
from accel_train.tools.report.one_run import sections
from accel_train.tools.report.predictions import predictions
from accel_train.tools.report.record import read_record
from tests.faults.conftest import base_config, make_dataset
from tests.short_runs import train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    values = base_config(make_dataset(folder / "dataset")) | {
        "num_epochs": None,
        "max_steps": 6,
        "evaluation": {"evaluate_every": "6 steps", "at_start": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.mark.slow
def test_the_story_of_a_real_run(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped = train(config, run, "nonfinite.max_in_a_row=1", "--inject", "nan:rank=0@2,signal:TERM:rank=0@4")
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    record = read_record(run)
    facts = facts_of(record)
    assert record.status == "stopped"
    assert (facts.num_skipped, facts.num_starts, facts.total_steps) == (1, 1, 6)
    assert "stopped by SIGTERM" in facts.ending
    assert {group["tower"] for group in record.groups[0]["groups"]} == {"image", "text", "heads"}
    assert record.launches[0][1]["world_size"] == 1

    resumed = train(config, run, "nonfinite.max_in_a_row=1")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    record = read_record(run)
    facts = facts_of(record)
    assert (record.status, facts.step, facts.num_starts, facts.num_skipped) == ("done", 6, 2, 1)
    kinds = [event.kind for event in record.story.events]
    assert {"skipped", "stopped", "resumed", "done"} <= set(kinds)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"valid"' in line][-1]
    assert facts.best_value == last["mean_recall"]
    headings = [heading for heading, _ in sections(record)]
    assert headings[:4] == ["At a glance", "Loss and scores", "Predictions", "Rates and gradients"]
    assert "data:image/webp" in predictions(record)


@pytest.mark.slow
def test_a_run_that_fails_says_why(config: Path, tmp_path: Path) -> None:
    failed = train(config, tmp_path / "run", "nonfinite.max_in_a_row=0", "--inject", "nan:rank=0@3")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert "is not finite" in facts_of(record).ending
