"""Promises 3 and 6 under injected faults: whatever ends a run, the next start goes on as if it had not been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_train.config.faults import KINDS, MOMENTS, read_faults
from tests.faults.chains import CHAINS, SAME_COMMAND, Chain, fault_counts
from tests.faults.injected import (
    FAILED,
    KILLED,
    REFUSED,
    REQUEUE,
    SPLIT,
    assert_ends_as,
    assert_so_far_as,
    newest_whole,
    train_through,
)


@pytest.fixture(scope="module")
def without_faults(never_killed: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The run that a chain is compared with; trained once for all chains that share it."""
    finished: dict[tuple[Any, ...], Any] = {}

    def train(experiment: Callable[..., Any], chain: Chain) -> Any:
        first = chain.starts[0]
        key = (first.engine, first.ranks, chain.overrides, chain.always)
        if key not in finished:
            run = experiment(*chain.overrides, SPLIT, name="reference")
            run.folder = run.folder.rename(tmp_path_factory.mktemp("reference") / "run")
            inject = ["--inject", chain.always] if chain.always else []
            record = run.folder / "samples.txt"
            run.finish(f"engine={first.engine}", *inject, ranks=first.ranks, record_samples=record)
            finished[key] = run
        return finished[key]

    return train


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_a_chain_of_faults_changes_nothing(
    experiment: Callable[..., Any], without_faults: Callable[..., Any], chain: Chain
) -> None:
    reference = without_faults(experiment, chain)
    train_through(chain, experiment(*chain.overrides, SPLIT), reference)


def test_at_least_two_hundred_faults_of_every_kind_at_every_moment() -> None:
    assert fault_counts().total() >= 200
    assert {name.split(", ")[0] for name, _ in fault_counts()} == set(KINDS)
    assert {fault.moment for chain in CHAINS for start in chain.starts for fault in [start.fault]} == set(MOMENTS)


@pytest.mark.timeout(600)
def test_one_command_started_until_it_is_done(
    experiment: Callable[..., Any], without_faults: Callable[..., Any]
) -> None:
    """Each fault fires once, however often the command that carries it is started."""
    reference = without_faults(experiment, CHAINS[0])
    run = experiment(SPLIT)
    faults = read_faults(SAME_COMMAND)
    for fired in range(1, len(faults) + 1):
        running = run.start("engine=ddp", "--inject", SAME_COMMAND, ranks=2)
        codes = running.wait()
        assert 0 not in codes and set(codes) <= {KILLED, FAILED, REQUEUE}, f"{codes}\n{running.output}"
        assert_so_far_as(run, reference, exactly=True)
        log = (run.run_dir / "run.log").read_text()
        assert f"--inject: {faults[fired - 1].text} fires" in running.output
        assert log.count("this run is made to fail") == fired
    output = run.finish("engine=ddp", "--inject", SAME_COMMAND, ranks=2)
    assert "faults to come: none; fired already: " in output
    assert_ends_as(run, reference, exactly=True)


def test_more_unreadable_samples_than_the_budget_allows(
    experiment: Callable[..., Any], without_faults: Callable[..., Any]
) -> None:
    """All ranks are refused with the reason; once the sample can be read, nothing shows of it."""
    run = experiment(SPLIT, "data.num_workers=1", "engine=ddp")
    output = run.fail("--inject", "unreadable-sample:17", code=REFUSED, ranks=2)
    assert "1 samples can't be read, and data.max_unreadable_samples is 0" in output
    assert "row 17: --inject unreadable-sample:17" in output
    reference = without_faults(experiment, CHAINS[0])
    assert newest_whole(run) == max(run.steps_on_disk(), default=0)
    assert_so_far_as(run, reference, exactly=True)
    run.finish(ranks=2)
    assert_ends_as(run, reference, exactly=True)


@pytest.mark.parametrize(
    ("inject", "complaint"),
    [
        ("kill:rank=2@3", "there is no rank 2; ranks are 0 to 1"),
        ("nan:rank=0@17", "the run ends at step 16"),
        ("kill-worker:rank=0@3", "data.num_workers is 0"),
    ],
)
def test_a_fault_that_can_not_be_met_is_refused_by_all_ranks(
    experiment: Callable[..., Any], inject: str, complaint: str
) -> None:
    run = experiment("engine=ddp")
    assert run.fail("--inject", inject, code=REFUSED, ranks=2).count(complaint) == 2
    assert not Path(run.checkpoints).exists()
