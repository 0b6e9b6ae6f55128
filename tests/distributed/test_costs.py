"""What one step costs: as few forward passes, loss evaluations and reductions as an exact step can do with."""

from collections.abc import Callable

import pytest

from tests.distributed.closeness import worst_difference
from tests.distributed.conftest import Observed
from tests.distributed.reference import Reference
from tests.distributed.scenarios import FEW_STEPS, KEEP_GRAPHS, KEPT_GRAPHS, STEPS, WHOLE_ENGINES

Trained = Callable[..., Reference]
TOWERS = ("vision_model", "text_model")


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_forward_passes(engine: str, world_size: int, num_micro_batches: int, observed: Observed) -> None:
    """The last micro-batch's graph is kept, so K micro-batches take 2K - 1 passes, and a single one takes one."""
    counts = observed(engine, world_size, f"info_nce@{num_micro_batches}").found["counts"]
    for tower in TOWERS:
        assert counts[tower] == STEPS * (2 * num_micro_batches - 1)


@pytest.mark.parametrize("engine", KEEP_GRAPHS)
@pytest.mark.parametrize("run", KEPT_GRAPHS)
def test_kept_graphs_need_no_second_pass(engine: str, run: str, observed: Observed, reference: Trained) -> None:
    """Two graphs are kept, so K micro-batches take 2K - 2 passes; the result is that of the whole batch."""
    observation = observed(engine, 2, run)
    num_micro_batches = int(run.partition("@")[2])
    assert observation.found["counts"]["text_model"] == FEW_STEPS * (2 * num_micro_batches - 2)
    difference, name = worst_difference(observation.weights, reference("kept_graphs").weights[-1])
    assert difference < 1e-5, name


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_a_frozen_tower_runs_once(engine: str, world_size: int, num_micro_batches: int, observed: Observed) -> None:
    counts = observed(engine, world_size, f"frozen_image@{num_micro_batches}").found["counts"]
    assert counts["vision_model"] == STEPS * num_micro_batches
    assert counts["text_model"] == STEPS * (2 * num_micro_batches - 1)


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
@pytest.mark.parametrize("scenario", ["frozen_layers", "frozen_resnet"])
def test_a_frozen_tower_below_a_trained_head_runs_once(engine: str, scenario: str, observed: Observed) -> None:
    """Where graphs can be kept, those of heads are; zero3 and fsdp2 encode all micro-batches but the last again."""
    counts = observed(engine, 2, f"{scenario}@2").found["counts"]
    assert counts["vision_model"] == FEW_STEPS * (2 if engine in KEEP_GRAPHS else 3)


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_one_loss_evaluation(engine: str, world_size: int, num_micro_batches: int, observed: Observed) -> None:
    counts = observed(engine, world_size, f"info_nce@{num_micro_batches}").found["counts"]
    assert counts["losses"] == STEPS


def test_ddp_reduces_once(observed: Observed) -> None:
    for run in ("counted@1", "counted@2"):
        observation = observed("ddp", 2, run)
        assert observation.found["counts"]["reductions"] == FEW_STEPS
        assert observation.losses == observed("ddp", 2, run.replace("counted", "info_nce")).losses[:FEW_STEPS]


def test_fsdp2_reduces_each_unit_once(observed: Observed) -> None:
    """Four blocks, the token embeddings, and the root."""
    for run in ("counted@1", "counted@2"):
        assert observed("fsdp2", 2, run).found["counts"]["reductions"] == FEW_STEPS * 6
