"""A step that is not finite is passed over by all ranks together, or the run goes back, and a kill changes none of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

ENGINES = [("ddp", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2)]
MODULE = "text_model.encoder.layer.0.output.dense"
BAD = 5
"""The step that is poisoned where nothing else is said: the second one after a checkpoint."""


def poison(*steps: int, rollbacks: int = 1) -> dict[str, Any]:
    return {"steps": list(steps), "module": MODULE, "rollbacks": rollbacks}


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.metrics() == theirs.metrics()
    found, expected = ours.whole_state(), theirs.whole_state()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def report(run: Any, step: int) -> dict[str, Any]:
    return json.loads((run.run_dir / "nonfinite" / f"step_{step:08d}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("engine", "ranks"), ENGINES)
def test_all_ranks_skip_together(experiment: Callable[..., Any], engine: str, ranks: int) -> None:
    run = experiment(f"engine={engine}", "num_epochs=2")
    print(run.finish(ranks=ranks, poison=poison(BAD)))
    print(report(run, BAD))
    print(run.metrics())
    print(run.finish("run", "--step", str(BAD), command="replay", poison=poison(BAD)))
