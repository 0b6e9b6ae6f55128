"""`initialize_from`: the weights come from elsewhere, everything else starts afresh."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_train.checkpoint.load import load_weights

BAD_CONFIGURATION = 2

# One step that moves nothing: what is saved after it are the weights it started from.
ONE_STILL_STEP = [
    "num_epochs=null",
    "max_steps=1",
    "schedule.warmup_steps=0",
    "optimizer.weight_decay=0.0",
    *(f"optimizer.towers.{tower}.lr=1e-15" for tower in ("image", "text", "heads")),
]


@pytest.fixture
def source(experiment: Callable[..., Any]) -> Any:
    """A run of another seed whose best checkpoint is not its last one."""
    run = experiment("seed=1", "checkpoint.keep_last=9", name="source")
    run.finish()
    (run.checkpoints / "best").unlink()
    (run.checkpoints / "best").symlink_to("step_00000006")
    return run


def started_from(experiment: Callable[..., Any], where: Path, name: str, **options: Any) -> Any:
    run = experiment(*ONE_STILL_STEP, f"initialize_from={where}", name=name)
    output = run.finish(**options)
    assert "weights from" in output
    assert "resuming" not in output
    state = run.state()
    assert (state["step"], state["samples"]) == (1, 8)
    return run


def assert_same_weights(run: Any, expected: dict[str, torch.Tensor]) -> None:
    found = load_weights(run.checkpoints / "latest")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_gives_its_best_checkpoint(experiment: Callable[..., Any], source: Any, ranks: int) -> None:
    run = started_from(experiment, source.run_dir, "from_run", ranks=ranks)
    best = load_weights(source.checkpoints / "step_00000006")
    last = load_weights(source.checkpoints / "latest")
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert_same_weights(run, best)
    scores = {row["step"]: row for row in source.metrics() if row["split"] == "valid"}
    at_start = run.metrics()[0]
    assert at_start == scores[6] | {"step": 0}, "a start is scored as the checkpoint was"


def test_a_checkpoint_folder_gives_itself(experiment: Callable[..., Any], source: Any) -> None:
    run = started_from(experiment, source.checkpoints / "step_00000003", "from_checkpoint")
    assert_same_weights(run, load_weights(source.checkpoints / "step_00000003"))


def test_an_export_gives_its_weights_to_any_engine(experiment: Callable[..., Any], source: Any) -> None:
    source.finish("run", "exported", "--checkpoint", "12", command="export")
    expected = load_weights(source.checkpoints / "step_00000012")
    run = started_from(experiment, source.folder / "exported", "from_export")
    assert_same_weights(run, expected)
    run = experiment(*ONE_STILL_STEP, "engine=zero3", f"initialize_from={source.folder / 'exported'}", name="zero3")
    run.finish(ranks=2)
    assert_same_weights(run, expected)


def test_its_own_checkpoint_comes_before_other_weights(experiment: Callable[..., Any], source: Any) -> None:
    run = experiment("num_epochs=1", name="own")
    run.finish()
    shutil.rmtree(run.checkpoints / "step_00000004")
    output = run.finish(f"initialize_from={source.run_dir}")
    assert "resuming from run/checkpoints/step_00000003 at step 3 of 4" in output
    assert "changed since the checkpoint: initialize_from was None" in output
    assert "weights from" not in output


def test_what_is_no_source_is_refused(experiment: Callable[..., Any], source: Any, tmp_path: Path) -> None:
    run = experiment(name="refused")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (source.checkpoints / "step_00000006" / "index.json").write_text("{}")
    for where, message in [
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "empty", "has no checkpoint 'best'. There are: none"),
        (source.run_dir, "can't be used: "),
    ]:
        assert message in run.fail(f"initialize_from={where}", code=BAD_CONFIGURATION)
    output = run.fail(
        f"initialize_from={source.checkpoints / 'step_00000003'}",
        "model.config.projection_dim=8",
        code=BAD_CONFIGURATION,
        ranks=2,
    )
    assert "does not fit the model of this configuration" in output
    assert "text_projection" in output
