"""Phases: one run in two parts is two runs chained by hand, and goes on elsewhere after the boundary."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from accel_train.checkpoint.load import load_weights

CHAIN_TOLERANCE = 1e-6
BOUNDARY, END = 4, 8  # an epoch has 4 steps: the second phase sees the same batches as a run that starts there
WHOLE = "towers: [{name: image, lr: 0.0005}, {name: text, train_last: all}], schedule: {name: linear, warmup_steps: 2}"
PHASES = f"phases=[{{name: whole, start: {BOUNDARY} steps, {WHOLE}}}]"
IMAGE_FROZEN = ["optimizer.towers.image.layer_decay=1.0", "optimizer.towers.image.lr=0.0"]
IN_PHASE_TWO = [
    "optimizer.towers.image.layer_decay=1.0",
    "optimizer.towers.image.lr=0.0005",
    "optimizer.towers.text.train_last=null",
    "schedule={name: linear, warmup_steps: 2}",
]
SAME_EVERY_EPOCH = [
    "data.shuffle=false",
    "data.augmentation={}",
    "model.config.text_config.hidden_dropout_prob=0.0",
    "model.config.text_config.attention_probs_dropout_prob=0.0",
]
CONSTANT = "schedule={name: constant}"


def length(steps: int) -> list[str]:
    return ["num_epochs=null", f"max_steps={steps}", "evaluation.evaluate_every=null", "checkpoint.save_every=2 steps"]


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_a_run_in_two_phases_is_two_runs_chained_by_hand(experiment: Callable[..., Any], engine: str) -> None:
    common = [f"engine={engine}", *SAME_EVERY_EPOCH]
    phased = experiment(*common, *length(END), CONSTANT, *IMAGE_FROZEN, PHASES, name="phased")
    output = phased.finish(ranks=2)
    assert f"phase whole begins at step {BOUNDARY}" in output
    assert f"text.since_{BOUNDARY}" in output

    first = experiment(*common, *length(BOUNDARY), CONSTANT, *IMAGE_FROZEN, name="first")
    first.finish(ranks=2)
    latest = first.checkpoints / "latest"
    second = experiment(
        *common,
        *length(END - BOUNDARY),
        *IN_PHASE_TWO,
        f"initialize_from={latest}",
        "initialize_optimizer=true",
        name="second",
    )
    output = second.finish(ranks=2)
    assert f"optimizer state from {latest} ({BOUNDARY} updates) for" in output
    assert phased.losses() == pytest.approx(first.losses() + second.losses(), abs=CHAIN_TOLERANCE)
    found, expected = (load_weights(run.checkpoints / "latest") for run in (phased, second))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=CHAIN_TOLERANCE, msg=name)


def test_brought_optimizer_state_matters(experiment: Callable[..., Any]) -> None:
    """Without it the second run is another one: the test above would see it missing."""
    first = experiment(*length(BOUNDARY), CONSTANT, name="first")
    first.finish()
    source = f"initialize_from={first.checkpoints / 'latest'}"
    losses = []
    for brought in ("true", "false"):
        second = experiment(*length(3), CONSTANT, source, f"initialize_optimizer={brought}", name=f"second_{brought}")
        second.finish()
        losses.append(second.losses())
    assert losses[0][0] == losses[1][0]
    assert abs(losses[0][2] - losses[1][2]) > 1e-4


def test_on_other_engines_and_ranks_after_the_boundary(experiment: Callable[..., Any]) -> None:
    reference = experiment(*length(END), PHASES, name="reference")
    reference.finish()
    moved = experiment(*length(END), PHASES, name="moved")
    running = moved.start("engine=fsdp2", ranks=2, step_seconds=0.05)
    moved.wait_for(lambda: moved.step() >= BOUNDARY + 2, running)
    running.kill()
    moved.finish("engine=zero3", ranks=2)
    assert moved.losses() == pytest.approx(reference.losses(), abs=1e-5)


def test_state_of_another_optimizer_is_refused(experiment: Callable[..., Any]) -> None:
    first = experiment(*length(4), name="first")
    first.finish()
    second = experiment(
        "optimizer.name=lion", "optimizer.betas=[0.9, 0.99]", "initialize_optimizer=true", name="second"
    )
    output = second.fail(f"initialize_from={first.run_dir}", code=2)
    assert "holds state of adamw, but optimizer.name is lion" in output
