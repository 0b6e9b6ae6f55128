"""Dropout under every engine: `fast` repeats its draws in the second pass, `per_sample` is the same under every split."""

from collections.abc import Callable

import pytest

from tests.distributed.closeness import worst_difference, worst_relative_error
from tests.distributed.conftest import Observation, Observed
from tests.distributed.reference import Reference
from tests.distributed.scenarios import GLOBAL_BATCH, KEYED_DROPOUT, WHOLE_ENGINES, runs_of

FAST = ["fast_dropout", "fast_dropout_recomputed"]
TOLERANCE = 1e-5
Trained = Callable[..., Reference]


def cases(scenarios: list[str]) -> list[object]:
    return [
        pytest.param(engine, world_size, run, id=f"{engine}-{world_size} ranks-{run.replace('@', ' x ')}")
        for world_size in (1, 2)
        for engine in WHOLE_ENGINES
        for run in runs_of(engine, world_size)
        if run.partition("@")[0] in scenarios
    ]


def assert_equal(observation: Observation, wanted: Reference) -> None:
    assert observation.losses == pytest.approx(wanted.losses, abs=TOLERANCE)
    error, name = worst_relative_error(observation.found["gradients"], wanted.gradients)
    assert error < TOLERANCE, name
    difference, name = worst_difference(observation.weights, wanted.weights[-1])
    assert difference < TOLERANCE, name


@pytest.mark.parametrize(("engine", "world_size", "run"), cases(FAST))
def test_fast_equals_one_graph_under_the_same_draws(
    engine: str, world_size: int, run: str, observed: Observed, reference: Trained
) -> None:
    """At a fixed micro-batch size the number of ranks doesn't matter either: both have the same reference."""
    micro_batch_size = GLOBAL_BATCH // (world_size * int(run.partition("@")[2]))
    assert_equal(observed(engine, world_size, run), reference("fast_dropout", micro_batch_size))


def test_fast_depends_on_the_micro_batch_size(reference: Trained) -> None:
    """So the test above compares what it says, and the promise needs the fixed size."""
    losses = [reference("fast_dropout", size).losses[0] for size in (4, 8)] + [reference("info_nce").losses[0]]
    assert min(abs(a - b) for a in losses for b in losses if a is not b) > 100 * TOLERANCE


@pytest.mark.parametrize(("engine", "world_size", "run"), cases(KEYED_DROPOUT))
def test_per_sample_is_the_same_under_every_split(
    engine: str, world_size: int, run: str, observed: Observed, reference: Trained
) -> None:
    """With activation checkpointing too: both scenarios equal the one reference, which has none."""
    assert_equal(observed(engine, world_size, run), reference("keyed_dropout"))


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_checkpointing_is_on(engine: str, observed: Observed) -> None:
    """Recomputed or not, the numbers agree to the bit: the masks are the same ones."""
    kept, recomputed = (observed(engine, 2, f"{name}@2") for name in KEYED_DROPOUT)
    assert recomputed.losses == kept.losses
    assert worst_difference(recomputed.weights, kept.weights)[0] == 0
    layers = "linear layers"
    assert recomputed.found["counts"][layers] > kept.found["counts"][layers]
