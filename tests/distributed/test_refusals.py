"""What stops a run stops every rank, with the exit code that scripts rely on and the words that help."""

from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train.config.load import dump_config
from tests.distributed.closeness import worst_difference
from tests.distributed.conftest import Observed
from tests.distributed.pairs import DAMAGED
from tests.distributed.ranks import Finished, run_ranks
from tests.distributed.reference import Reference
from tests.distributed.scenarios import WHOLE_ENGINES, config_of

SKIPPED = "skipped a sample that can't be read:"
Train = Callable[..., list[Finished]]


@pytest.fixture
def train(dataset: str, tmp_path: Path) -> Train:
    """train(scenario, engine, override, ..., module=..., VARIABLE=value): `accel-train train` on two ranks."""

    def train(
        scenario: str, engine: str, *overrides: str, module: str = "accel_train", **environment: str
    ) -> list[Finished]:
        config = config_of(scenario, dataset=dataset, run_dir=str(tmp_path / "run"), engine=engine, micro_batch_size=4)
        path = tmp_path / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        return run_ranks(2, "-m", module, "train", str(path), *overrides, timeout=120, **environment)

    return train


def test_too_many_unreadable_samples(train: Train) -> None:
    """The first global batch without a readable image is met by one rank; both leave, and each bad sample is named."""
    ranks = train("unreadable", "ddp", "data.max_unreadable_samples=1")
    assert [rank.exit_code for rank in ranks] == [2, 2]
    for rank in ranks:
        assert "samples can't be read, and data.max_unreadable_samples is 1" in rank.output
        assert "Traceback" not in rank.output
    assert SKIPPED in ranks[0].output


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_unreadable_samples_within_the_budget_are_named(engine: str, observed: Observed) -> None:
    """That training goes on as it should is a scenario of test_split_invariance.py."""
    log = observed(engine, 2, "unreadable@2").log
    for image in DAMAGED:
        assert f"{SKIPPED} damaged: image 'img{image}'" in log


def test_a_gradient_that_is_not_a_number_ends_every_rank(train: Train) -> None:
    """One rank's target is NaN in the second step."""
    ranks = train("poisoned", "ddp", module="tests.distributed.toy")
    assert [rank.exit_code for rank in ranks] == [1, 1]
    for rank in ranks:
        assert "step 2: the gradient of 4 of 4 groups is not finite" in rank.output
        assert "Traceback" not in rank.output


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_such_a_gradient_changes_no_weight(
    engine: str, observed: Observed, reference: Callable[..., Reference]
) -> None:
    observation = observed(engine, 2, "poisoned@2")
    assert observation.found["refused"].startswith("step 2: the gradient of 4 of 4 groups is not finite")
    assert len(observation.metrics) == 1
    assert worst_difference(observation.weights, reference("poisoned").weights[0])[0] < 1e-6


def test_the_launcher_and_the_configuration_disagree(train: Train) -> None:
    ranks = train("info_nce", "zero2", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert [rank.exit_code for rank in ranks] == [2, 2]
    for rank in ranks:
        assert "engine: the configuration says zero2, the launcher says fsdp2" in rank.output


def test_accelerate_is_not_let_drop_deepspeed(train: Train, tmp_path: Path) -> None:
    """ACCELERATE_USE_CPU makes Accelerate give DDP where ZeRO was asked for, without a word."""
    ranks = train("counted", "zero2", ACCELERATE_USE_CPU="true")
    assert [rank.exit_code for rank in ranks] == [0, 0]
    assert "engine zero2 (Zero) on 2 x cpu" in (tmp_path / "run" / "run.log").read_text()
