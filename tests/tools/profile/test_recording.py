"""The profiler's record: shares of time against a naive count, and phases that add up to the step."""

import numpy as np
import pytest

from accel_train.config.load import load_config
from accel_train.config.schema import RunConfig
from accel_train.progress import Meter
from accel_train.tools.bench.training import as_bench
from accel_train.tools.profile.phases import operator_rows, phase_rows, step_seconds
from accel_train.tools.profile.recording import Span, length, overlap, record, union
from accel_train.tools.rehearsal import rehearsal
from accel_train.train import global_batches, one_step, save
from accel_train.whereabouts import Whereabouts
from tests.short_runs import ROOT

NUM_STEPS = 2
TINY = [
    "data.global_batch_size=16",
    "data.num_workers=0",
    "data.image_size=32",
    "model.image.config.hidden_sizes=[8,16,32]",
]


def small_config(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "quickstart.yaml", [*TINY, "data.micro_batch_size=8", *overrides])


def covered(spans: list[Span]) -> np.ndarray:
    """Which of 1,000 units of time lie in a span."""
    found = np.zeros(1000, bool)
    for start, end in spans:
        found[int(start) : int(end)] = True
    return found


@pytest.mark.parametrize("seed", range(20))
def test_unions_and_overlaps_are_those_of_sets(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def drawn() -> list[Span]:
        starts = generator.integers(0, 900, generator.integers(0, 12))
        return [(float(start), float(start + generator.integers(1, 100))) for start in starts]

    left, right = drawn(), drawn()
    assert length(union(left)) == covered(left).sum()
    assert length(overlap(union(left), union(right))) == (covered(left) & covered(right)).sum()


def test_phases_of_recorded_steps() -> None:
    with rehearsal(as_bench(small_config()), quiet=True) as run:
        batches, meter = global_batches(run), Meter(run.engine.device)
        one_step(run, next(batches), meter)
        here = run.engine.whereabouts
        found = record(run.engine, lambda: one_step(run, next(batches), meter), NUM_STEPS, then=lambda: save(run))
        batches.close()
        assert run.engine.whereabouts is here, "the engine has its own notes back"
        assert type(here) is Whereabouts, "which know no profiler"
        assert here.step == run.state.step == NUM_STEPS + 1
    rows = {row.name: row for row in phase_rows(found, NUM_STEPS)}
    named = ["data", "agree", "forward", "gather", "loss", "backward", "norms", "step", "log", "checkpoint"]
    assert list(rows) == named
    assert rows["forward"].calls == 2, "the first passes, and the one again"
    assert (rows["backward"].calls, rows["checkpoint"].calls) == (2, 1)
    assert rows["checkpoint"].share is None
    in_steps = [row for row in rows.values() if row.share is not None]
    assert 0.8 < sum(row.own for row in in_steps) / step_seconds(found, NUM_STEPS) <= 1
    assert sum(row.share for row in in_steps) == pytest.approx(
        sum(row.own for row in in_steps) / step_seconds(found, NUM_STEPS)
    )
    assert all(0 < row.own <= row.total for row in rows.values())
    operators = operator_rows(found, NUM_STEPS, top=5)
    assert len(operators) == 5
    assert [row.own for row in operators] == sorted((row.own for row in operators), reverse=True)
    assert not {row.name for row in operators} & set(named), "phases are no operators"
    assert operators[0].name.startswith("aten::"), operators
