"""Promise 1: ranks, micro-batches and engine cut up the global batch and change nothing else.

Everything is compared with the plain training of `reference.py`: no engine, no micro-batches, one backward pass. SGD
moves the weights, so a gradient with a wrong scale can't hide.
"""

from collections.abc import Callable

import pytest

from tests.distributed.closeness import worst_difference, worst_relative_error
from tests.distributed.conftest import Observed
from tests.distributed.reference import Reference
from tests.distributed.scenarios import ENGINES, INVARIANT, WHOLE_ENGINES, runs_of

TOLERANCE = 1e-5
CASES = [
    pytest.param(engine, world_size, run, id=f"{engine}-{world_size} ranks-{run.replace('@', ' x ')}")
    for world_size in (1, 2)
    for engine in ENGINES
    for run in runs_of(engine, world_size)
    if run.partition("@")[0] in INVARIANT
]
NO_TEMPERATURE = ("tokens", "texts", "scored_apart", "captioned")
Trained = Callable[..., Reference]


@pytest.mark.parametrize(("engine", "world_size", "run"), CASES)
def test_gradients_of_the_first_step(
    engine: str, world_size: int, run: str, observed: Observed, reference: Trained
) -> None:
    found = observed(engine, world_size, run).found["gradients"]
    error, name = worst_relative_error(found, reference(run.partition("@")[0]).gradients)
    assert error < TOLERANCE, name


@pytest.mark.parametrize(
    ("engine", "world_size", "run"),
    [case for case in CASES if not any(name in str(case.id) for name in NO_TEMPERATURE)],
)
def test_gradient_of_the_temperature(
    engine: str, world_size: int, run: str, observed: Observed, reference: Trained
) -> None:
    """The usual ways to gather features get this one wrong by the number of ranks or of micro-batches."""
    wanted = reference(run.partition("@")[0]).gradients
    name = next(name for name in wanted if name.endswith("logit_scale"))
    found = observed(engine, world_size, run).found["gradients"][name]
    assert float(found / wanted[name]) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize(("engine", "world_size", "run"), CASES)
def test_loss_of_every_step(engine: str, world_size: int, run: str, observed: Observed, reference: Trained) -> None:
    wanted = reference(run.partition("@")[0]).losses
    assert observed(engine, world_size, run).losses == pytest.approx(wanted, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize(("engine", "world_size", "run"), CASES)
def test_weights_after_the_last_step(
    engine: str, world_size: int, run: str, observed: Observed, reference: Trained
) -> None:
    observation = observed(engine, world_size, run)
    difference, name = worst_difference(observation.weights, reference(run.partition("@")[0]).weights[-1])
    assert difference < TOLERANCE, name
    assert observation.found["equal_on_all_ranks"]


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_metrics_of_a_batch_whose_features_are_not_gathered(engine: str, observed: Observed) -> None:
    """The sigmoid loss needs no rank to have them all; what is logged needs it."""
    wanted, found = observed("ddp", 1, "sigmoid@1").metrics, observed(engine, 2, "sigmoid@2").metrics
    for name in ("temperature", "in_batch_accuracy/image_to_text", "in_batch_accuracy/text_to_image"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in wanted], abs=TOLERANCE)


def test_the_references_differ(reference: Trained) -> None:
    """A scenario that changed nothing would prove nothing."""
    losses = {name: tuple(reference(name).losses) for name in INVARIANT}
    assert len(set(losses.values())) == len(losses)
    for name in INVARIANT:
        first, last = reference(name).weights[0], reference(name).weights[-1]
        assert worst_difference(first, last)[0] > 100 * TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation_between_steps_changes_nothing(engine: str, observed: Observed) -> None:
    """One tower alone runs then: ZeRO-3 must not expect the other, FSDP2 must not keep gathered weights that are old."""
    observation = observed(engine, 2, "evaluated@2")
    evaluations = observation.log.count("valid at step")
    assert evaluations == 1 + len(observation.metrics)
