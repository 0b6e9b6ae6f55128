"""The range test gives one curve under every engine, and every curve of a launch begins at the same weights."""

import json
from collections.abc import Callable
from typing import Any

import pytest

TEST = ["config.yaml", "--from", "1e-4", "--to", "1e-1", "--steps", "20", "--tower", "image", "--tower", "image"]


def curves(experiment: Any, ranks: int) -> list[list[float]]:
    experiment.finish(*TEST, *experiment.overrides, ranks=ranks, command="find-lr")
    found = json.loads((experiment.run_dir / "find_lr" / "find_lr.json").read_text())
    return [test["losses"] for test in found["tests"]]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return {}


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_one_curve_whatever_the_engine(
    experiment: Callable[..., Any], alone: dict[str, list[float]], engine: str
) -> None:
    if not alone:
        alone["losses"] = curves(experiment(name="alone"), 1)[0]
    first, second = curves(experiment(f"engine={engine}"), 2)
    assert first == second, "the snapshot was not restored"
    assert first == pytest.approx(alone["losses"], abs=1e-4)
    assert len(set(first)) == len(first)
