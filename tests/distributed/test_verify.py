"""`verify` knows every task, and every way in which a step may depend on how its batch is cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks

RUNS = {
    "llrd@2": "one forward pass over the whole batch",
    "sigmoid@2": "one forward pass over the whole batch",
    "tokens@2": "one forward pass over the whole batch",
    "texts_keyed_dropout@2": "one forward pass over the whole batch",
    "unreadable@2": "one forward pass over the whole batch",
    "scored@2": "one forward pass over the whole batch",
    "scored_apart@2": "one forward pass over the whole batch",
    "aligned@2": "one forward pass over the whole batch",
    "captioned@2": "one forward pass over the whole batch",
    "distilled@2": "one forward pass over the whole batch",
    "fast_dropout_recomputed@2": "each with the launch's own random draws",
    "synced@2": "because BatchNorm takes its statistics from each",
    "bf16@2": "one forward pass over the whole batch",
    "fp16@2": "one forward pass over the whole batch",
}


@pytest.fixture(scope="module")
def found(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    out = tmp_path_factory.mktemp("verified")
    ranks = run_ranks(2, "-m", "tests.distributed.verify_worker", str(out), dataset, *RUNS)
    assert [rank.exit_code for rank in ranks] == [0, 0], ranks[0].output[-4000:]
    assert not (Path(out) / "never_written").exists()
    return lambda run: json.loads((out / f"{run}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_right_step_of_this_kind_passes(run: str, found: Callable[[str], dict[str, Any]]) -> None:
    reading = found(run)
    assert reading["said"] == ""
    assert RUNS[run] in reading["compared_with"]
    in_16_bits = run[:4] in ("bf16", "fp16")
    worst = max(group["gradient"]["error"] for group in reading["groups"])
    assert (1e-4 < worst < 1e-2) if in_16_bits else worst < 1e-5
    assert max(group["update"]["error"] for group in reading["groups"]) < 1e-5
