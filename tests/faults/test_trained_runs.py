"""What `evaluate` and `export` make of a run: the scores that its metrics have, on any ranks, and a folder that loads."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, ChineseCLIPModel

from accel_train.checkpoint.load import load_weights

BAD_CONFIGURATION = 2


@pytest.fixture(scope="module")
def trained(never_killed: Callable[[str, int], Any]) -> Any:
    """Trained under ZeRO-3 on two ranks: every weight lies in two files."""
    return never_killed("zero3", 2)


def scores_of(run: Any, *arguments: str, ranks: int = 1) -> dict[str, Any]:
    output = run.finish(*arguments, "--json", command="evaluate", ranks=ranks)
    start = output.index('{\n "source"')
    return json.JSONDecoder().raw_decode(output[start:])[0]  # type: ignore[no-any-return]


def expected_scores(run: Any, step: int) -> dict[str, float]:
    (row,) = [row for row in run.metrics() if row["split"] == "valid" and row["step"] == step]
    return {name: value for name, value in row.items() if name not in ("step", "split")}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("checkpoint", ["best", "latest", "15"])
def test_scores_are_those_of_the_metrics(trained: Any, checkpoint: str, ranks: int) -> None:
    found = scores_of(trained, "run", "--checkpoint", checkpoint, ranks=ranks)
    steps = {"best": trained.state("best")["step"], "latest": 16, "15": 15}
    assert found["step"] == steps[checkpoint]
    assert found["scores"] == expected_scores(trained, found["step"])


def test_the_best_checkpoint_is_the_best_one_saved(trained: Any) -> None:
    name = "mean_recall"
    scores = {row["step"]: row[name] for row in trained.metrics() if row["split"] == "valid" and row["step"] > 0}
    assert trained.state("best")["step"] in scores
    assert trained.state("latest")["best_score"] == max(
        row[name] for row in trained.metrics() if row["split"] == "valid"
    )


def test_an_export_scores_the_same_and_loads_with_transformers(trained: Any) -> None:
    trained.finish("run", "exported", "--checkpoint", "latest", command="export")
    folder = trained.folder / "exported"
    assert scores_of(trained, "exported")["scores"] == expected_scores(trained, 16)
    model, loading = ChineseCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = load_weights(trained.checkpoints / "latest")
    for name, tensor in model.state_dict().items():
        if name in weights:
            assert torch.equal(tensor.reshape(-1), weights[name].reshape(-1)), name
    assert {name for name, _ in model.named_parameters()} <= weights.keys()
    assert AutoTokenizer.from_pretrained(folder)("红色的花")["input_ids"][0] == 2
    assert "exists already" in trained.fail("run", "exported", command="export", code=BAD_CONFIGURATION)


def test_a_run_without_the_checkpoint_says_which_it_has(trained: Any) -> None:
    output = trained.fail("run", "--checkpoint", "7", command="evaluate", code=BAD_CONFIGURATION)
    assert "has no checkpoint 'step_00000007'. There are: step_00000016, step_00000015" in output
    output = trained.fail("nowhere", command="evaluate", code=BAD_CONFIGURATION)
    assert "nowhere is neither a run" in output
