"""The time of a step that `plan` gives from this host's calibration, against the step that `bench` measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_train.tools.bench.figures import Figure
from tests.benchmarks.test_loop import NO_WORKERS, QUICKSTART, VIT
from tests.distributed.ranks import ROOT, run_ranks
from tests.small_data import data_for

GOAL = 1.25
LLAMA = [
    "configs/small/sequence_classification.yaml",
    "data.max_text_length=4",
    "data.length_window=0",
    "data.global_batch_size=90",
    "model.config.hidden_size=256",
    "model.config.intermediate_size=688",
    "model.config.num_hidden_layers=6",
]
"""Texts of the made-up data are cut to one length, since `plan` counts the longest."""
MODELS = {"quickstart": (QUICKSTART, 128), "vit": (VIT, 64), "llama": (LLAMA, 90)}
"""Settings, and the global batch."""
LAUNCHES = {"one": (1, "ddp"), "ddp_2": (2, "ddp"), "zero2_2": (2, "zero2"), "fsdp2_2": (2, "fsdp2")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache folder with a calibration of one rank and of two at once."""
    folder = str(tmp_path_factory.mktemp("cache"))
    for ranks in (1, 2):
        output_of(ranks, "bench", *QUICKSTART, "--calibrate", cache=folder)
    return folder


def output_of(world_size: int, *words: str, cache: str) -> str:
    ranks = run_ranks(world_size, "-m", "accel_train", *words, XDG_CACHE_HOME=cache)
    assert [rank.exit_code for rank in ranks] == [0] * world_size, ranks[0].output
    return ranks[0].output


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("model", MODELS)
def test_planned_step(model: str, launch: str, cache: str, tmp_path: Path, record: Callable[[Figure], None]) -> None:
    (config, batch), (world_size, engine) = MODELS[model], LAUNCHES[launch]
    given = [] if model != "llama" else data_for(ROOT / config[0], tmp_path)
    words = [config[0], *given, *config[1:], NO_WORKERS, f"engine={engine}", f"run_dir={tmp_path / 'run'}"]
    words.append(f"data.micro_batch_size={batch // world_size}")
    words = list({word.partition("=")[0]: word for word in words}.values())
    plan = last_json(output_of(1, "plan", *words, f"--ranks={world_size}", "--json", cache=cache))["step_time"]
    steps = ["--steps=8", "--warmup=2", "--rounds=1", "--json"]
    seconds = last_json(output_of(world_size, "bench", *words, *steps, cache=cache))["step_seconds"]
    print(
        {name: round(value, 4) for name, value in plan["parts"].items()},
        f"planned {plan['seconds']:.4f}, {seconds:.4f}",
    )
    how = (
        f"the step that plan gives over the median step that bench measures, or the reverse where it is shorter; "
        f"{model}, {engine} on {world_size} of one thread, batches of {batch}"
    )
    ratio = plan["seconds"] / seconds
    record(Figure(f"plan/{model}_{launch}", max(ratio, 1 / ratio), 0.0, GOAL, how, better="lower"))


def last_json(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output[output.index("{\n") :])
    return found
