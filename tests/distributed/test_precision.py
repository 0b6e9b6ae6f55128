"""16-bit forward passes: the engines agree with each other, and an overflow costs time and nothing else."""

import pytest

from tests.distributed.closeness import worst_difference
from tests.distributed.conftest import Observed
from tests.distributed.scenarios import FEW_STEPS, WHOLE_ENGINES

TOLERANCE = 1e-6


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_bf16_agrees_with_ddp_at_one_micro_batch_size(engine: str, world_size: int, observed: Observed) -> None:
    run = f"bf16@{4 // world_size}"
    found, wanted = observed(engine, world_size, run), observed("ddp", world_size, run)
    assert found.losses == pytest.approx(wanted.losses, rel=0, abs=TOLERANCE)
    difference, name = worst_difference(found.weights, wanted.weights)
    assert difference < TOLERANCE, name


def test_bf16_agrees_over_ranks_at_one_micro_batch_size(observed: Observed) -> None:
    found, wanted = observed("ddp", 1, "bf16@4"), observed("ddp", 2, "bf16@2")
    assert found.losses == pytest.approx(wanted.losses, rel=0, abs=TOLERANCE)
    assert worst_difference(found.weights, wanted.weights)[0] < TOLERANCE


def test_bf16_is_on(observed: Observed) -> None:
    in_bf16, in_fp32 = (observed("ddp", 2, f"{name}@2").losses[0] for name in ("bf16", "info_nce"))
    assert 1e-4 < abs(in_bf16 - in_fp32) < 1e-2


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_an_fp16_overflow_takes_the_same_batch_again(engine: str, observed: Observed) -> None:
    """One rank's backward pass overflows in one step: all ranks halve the scale, and no step is lost."""
    clean, hit = observed(engine, 2, "fp16@2"), observed(engine, 2, "fp16_overflow@2")
    assert hit.found["state"]["step"] == clean.found["state"]["step"] == FEW_STEPS
    assert hit.found["counts"]["losses"] == clean.found["counts"]["losses"] + 1
    assert hit.found["state"]["loss_scale"] == clean.found["state"]["loss_scale"] / 2
    assert [line["loss_scale"] for line in hit.metrics] == [2.0**16, 2.0**15]
    assert hit.losses == pytest.approx(clean.losses, rel=0, abs=TOLERANCE)
    difference, name = worst_difference(hit.weights, clean.weights)
    assert difference < 10 * TOLERANCE, name


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_fp16_finds_a_scale(engine: str, observed: Observed) -> None:
    """From 2^24 down, in the first step."""
    found, clean = observed(engine, 2, "fp16_search@2"), observed(engine, 2, "fp16@2")
    scales = [line["loss_scale"] for line in found.metrics]
    assert 1 < scales[0] < 2.0**24
    assert scales == scales[:1] * FEW_STEPS
    assert found.losses == pytest.approx(clean.losses, abs=1e-4)


def test_fp16_is_on(observed: Observed) -> None:
    in_fp16, in_fp32 = (observed("ddp", 2, f"{name}@2").losses[0] for name in ("fp16", "info_nce"))
    assert 1e-6 < abs(in_fp16 - in_fp32) < 1e-2
