"""The command: curves that begin at one snapshot, ratios kept, towers at rest, and a table that is a training."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_train.cli import main
from accel_train.config.load import load_config
from accel_train.tools.find_lr.curve import exponential_rates
from tests import labelled
from tests.short_runs import ROOT, metrics

CONFIG = str(ROOT / "configs" / "small" / "sequence_classification.yaml")
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    data = labelled.write_dataset(tmp_path / "data")
    shape = [f"model.config.{name}={value}" for name, value in TINY.items()]
    return [
        CONFIG,
        f"run_dir={tmp_path / 'run'}",
        f"data.path={data}",
        "data.valid_split=valid",
        "data.global_batch_size=8",
        "data.micro_batch_size=8",
        "data.num_workers=0",
        "evaluation.early_stopping=null",
        *shape,
    ]


def find_lr(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["find-lr", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_curve_is_a_training_at_rising_rates(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At rates that do nothing, the losses are those of a run that learns nothing; and the curve's first steps repeat."""
    found = find_lr(capsys, *settings, "--from", "1e-20", "--to", "1e-19", "--steps", "20")
    (curve,) = found["tests"]
    assert curve["rates"] == pytest.approx(exponential_rates(1e-20, 1e-19, 20))
    assert curve["suggestion"] is None
    still = ["num_epochs=null", "max_steps=20", "log.log_every=1 step", "evaluation.at_start=false"]
    assert main(["train", *settings, *still, "optimizer.towers.decoder.lr=1e-20"]) == 0
    assert curve["losses"] == pytest.approx([row["loss"] for row in metrics(tmp_path / "run", "train")], rel=1e-6)


def test_each_curve_begins_at_the_same_weights(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    towers = ["--tower", "decoder", "--tower", "decoder"]
    first, second = find_lr(capsys, *settings, *towers, "--from", "1e-4", "--to", "1e-1", "--steps", "20")["tests"]
    assert first["losses"] == second["losses"]
    assert len(set(first["losses"])) == len(first["losses"])
    folder = tmp_path / "run"
    assert [path.name for path in folder.iterdir()] == ["find_lr"], "nothing of a run is left"
    assert {path.name for path in (folder / "find_lr").iterdir()} == {"find_lr.html", "find_lr.json", "find_lr.png"}
    page = (folder / "find_lr" / "find_lr.html").read_text()
    assert "decoder: loss over the rate of decoder" in page


def test_the_loss_explodes_and_the_test_ends(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (curve,) = find_lr(capsys, *settings, "--from", "1e-3", "--to", "1e6", "--steps", "60")["tests"]
    assert curve["diverged"] is not None
    assert len(curve["losses"]) < 60
    assert len(curve["rates"]) == len(curve["losses"])


def test_the_table_trains_at_each_rate(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["--table", "1e-9,3e-3", "--table-steps", "12", "--test-split", "train"]
    found = find_lr(capsys, *settings, *table, "--steps", "20", "--output", str(tmp_path / "out"))
    slow, fast = found["table"]
    assert (slow["lr"], fast["lr"]) == (1e-9, 3e-3)
    assert fast["train_loss"] < slow["train_loss"]
    assert all(row["steps"] == 12 and row["test_score"] is not None for row in (slow, fast))
    run = ["num_epochs=null", "max_steps=12", "evaluation.at_start=false", "schedule.warmup_ratio=0.1"]
    if load_config(CONFIG).schedule.warmup_steps is not None:
        run.append("schedule.warmup_steps=null")
    assert main(["train", *settings, *run, "optimizer.towers.decoder.lr=3e-3", "log.log_every=1 step"]) == 0
    losses = [row["loss"] for row in metrics(tmp_path / "run", "train")]
    scores = [row["accuracy"] for row in metrics(tmp_path / "run", "valid")]
    assert fast["train_loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert fast["best_score"] == pytest.approx(max(scores))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "1e-2", "--to", "1e-5"], "--from 0.01 --to 1e-05"),
        (["--from", "0", "--to", "1e-5"], "both must be above 0"),
        (["--steps", "5"], "at least 20"),
        (["--tower", "image"], "'image' is no tower of this configuration that learns; those are decoder"),
        (["--table", "1e-3,x"], "1e-3,x"),
        (["--test-split", "valid"], "give --table too"),
        (["--table", "1e-3", "data.valid_split=null"], "no score to compare"),
    ],
)
def test_what_makes_no_test_is_refused(
    settings: list[str], arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[-1] == "data.valid_split=null":
        settings.remove("data.valid_split=valid")
    assert main(["find-lr", *settings, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tower_alone_moves_and_the_others_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates keep their ratio with all towers, and are 0 for those at rest; read where the update reads them."""
    import accel_train.tools.find_lr.steps as steps

    seen: list[dict[str, float]] = []
    update = steps.update

    def recorded(run: Any, norms: torch.Tensor) -> None:
        seen.append({group["tower"]: group["lr"] / group["base_lr"] for group in run.engine.optimizer.param_groups})
        update(run, norms)

    monkeypatch.setattr(steps, "update", recorded)
    quickstart = [str(ROOT / "configs" / "quickstart.yaml"), f"run_dir={tmp_path / 'run'}", "data.num_workers=0"]
    small = ["data.global_batch_size=8", "data.micro_batch_size=8", "--from", "1e-6", "--to", "1e-4", "--steps", "20"]
    find_lr(capsys, *quickstart, *small)
    highest = max(tower.lr for tower in load_config(quickstart[0]).optimizer.towers)
    for rate, ratios in zip(exponential_rates(1e-6, 1e-4, 20), seen, strict=False):
        assert {round(ratio * highest / rate, 9) for ratio in ratios.values()} == {1.0}
    seen.clear()
    find_lr(capsys, *quickstart, *small, "--tower", "text")
    assert all(ratios["text"] > 0 for ratios in seen)
    assert all(value == 0 for ratios in seen for tower, value in ratios.items() if tower != "text")
    assert not math.isnan(sum(ratios["text"] for ratios in seen))
