"""What a resume refuses, what it takes from the present configuration, and what it says aloud."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BAD_CONFIGURATION = 2


@pytest.fixture
def begun(experiment: Callable[..., Any]) -> Any:
    """A run of 8 steps with checkpoints at 3, 6 and 8, of which the last two are kept, and step 3 too if it is the best."""
    run = experiment("num_epochs=2", "checkpoint.keep_last=3")
    run.finish()
    return run


def metrics_and_checkpoints(run: Any) -> dict[Path, bytes]:
    names = ("run.log",)
    return {file: file.read_bytes() for file in run.run_dir.rglob("*") if file.is_file() and file.name not in names}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "seed was 0, is 3"),
        ("data.global_batch_size=4", "data.global_batch_size was 8, is 4"),
        ("data.shuffle=false", "data.shuffle was True, is False"),
        ("data.last_batch=keep", "data.last_batch was 'drop', is 'keep'"),
        ("data.augmentation.horizontal_flip=0.1", "data.augmentation.horizontal_flip was 0.5, is 0.1"),
        ("optimizer.name=adam", "optimizer.name was 'adamw', is 'adam'"),
        ("loss.label_smoothing=0.1", "loss.label_smoothing was 0.0, is 0.1"),
        ("dropout=per_sample", "dropout was 'fast', is 'per_sample'"),
        ("model.config.projection_dim=8", "model.config.projection_dim was '(absent)', is 8"),
        ("data.image_mean=[0.5,0.5,0.5]", "data.image_mean was"),
    ],
)
def test_what_makes_it_another_run_is_refused(begun: Any, override: str, message: str) -> None:
    before = metrics_and_checkpoints(begun)
    output = begun.fail(override, code=BAD_CONFIGURATION)
    assert message in output
    assert "can't be resumed with another configuration" in output
    assert metrics_and_checkpoints(begun) == before


def test_every_difference_is_named_at_once_on_every_rank(begun: Any) -> None:
    output = begun.fail("seed=3", "data.global_batch_size=16", code=BAD_CONFIGURATION, ranks=2)
    assert "seed was 0, is 3; data.global_batch_size was 8, is 16" in output


def test_another_dataset_is_refused_and_a_moved_one_is_not(begun: Any, dataset: Path, write_dataset: Any) -> None:
    other = write_dataset(begun.folder / "other", seed=1)
    before = metrics_and_checkpoints(begun)
    output = begun.fail(f"data.path={other}", code=BAD_CONFIGURATION)
    assert "holds other training samples" in output
    assert metrics_and_checkpoints(begun) == before
    shutil.copytree(dataset, begun.folder / "moved")
    output = begun.finish(f"data.path={begun.folder / 'moved'}")
    assert f"changed since the checkpoint: data.path was '{dataset}', is '{begun.folder / 'moved'}'" in output


def test_fresh_refuses_a_folder_with_checkpoints_and_deletes_nothing(begun: Any) -> None:
    before = metrics_and_checkpoints(begun)
    output = begun.fail("--fresh", code=BAD_CONFIGURATION, ranks=2)
    assert "holds a run and --fresh was given" in output
    assert metrics_and_checkpoints(begun) == before


def test_the_learning_rate_is_that_of_the_present_configuration(begun: Any) -> None:
    """A longer run with another rate: said aloud, and lr(step) is the new one from the first resumed step on."""
    begun.overrides = []
    changes = ["num_epochs=3", "optimizer.towers.heads.lr=5e-3", "schedule.name=linear", "checkpoint.keep_last=1"]
    output = begun.finish(*changes)
    assert "changed since the checkpoint: num_epochs was 2, is 3" in output
    assert "changed since the checkpoint: optimizer.towers.heads.lr was 0.002, is 0.005" in output
    assert "changed since the checkpoint: schedule.name was 'cosine', is 'linear'" in output
    rates = {row["step"]: row["lr/heads"] for row in begun.metrics() if row["split"] == "train"}
    assert list(rates) == list(range(1, 13))
    for step in range(8, 12):
        assert rates[step + 1] == pytest.approx(5e-3 * (12 - step) / 8)
    assert rates[8] < 2e-3, "and lines from before are as they were"


@pytest.mark.parametrize("damage", ["weights", "state", "index"])
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(begun: Any, damage: str) -> None:
    metrics = begun.metrics()
    final = begun.whole_state()
    folder = begun.checkpoints / "step_00000008"
    files = {"weights": "rank_00000.safetensors", "state": "state.json", "index": "index.json"}
    content = bytearray((folder / files[damage]).read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    (folder / files[damage]).write_bytes(content)
    output = begun.finish(ranks=1)
    assert "warning: checkpoint step_00000008 is damaged and passed over" in output
    assert files[damage] in output
    assert "at step 6 of 8" in output
    assert begun.metrics() == metrics
    assert all((begun.whole_state()[name] == tensor).all() for name, tensor in final.items())
    assert (begun.checkpoints / "step_00000008.damaged").is_dir(), "the evidence is kept"


def test_if_all_are_damaged_nothing_is_started(begun: Any) -> None:
    for folder in begun.checkpoints.glob("step_*"):
        state = json.loads((folder / "state.json").read_text())
        state["files"][1]["xxh3"] = "0" * 32
        (folder / "state.json").write_text(json.dumps(state))
    before = metrics_and_checkpoints(begun)
    output = begun.fail(code=BAD_CONFIGURATION, ranks=2)
    assert "none of the 3 checkpoints is whole" in output
    assert "SHA-256 differs" in output
    assert metrics_and_checkpoints(begun) == before
