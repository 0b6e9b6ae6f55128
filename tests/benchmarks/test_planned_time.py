"""The time of a step that `plan` gives from this host's calibration, and what it says of more ranks, against `bench`."""

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
BATCH = "data.global_batch_size"
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
    seconds = step_seconds(world_size, words, cache)
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


@pytest.mark.parametrize("engine", ["ddp", "zero2", "fsdp2"])
def test_scaling(engine: str, cache: str, tmp_path: Path, record: Callable[[Figure], None]) -> None:
    """Weak scaling from one process to two with a core each; links as fast as the collectives that were measured.

    fsdp2 has no goal: the model hides its gathers behind computing, as a GPU does, and here the same cores do both.
    """
    share = 32
    words = [*VIT, NO_WORKERS, f"run_dir={tmp_path / 'run'}", f"data.micro_batch_size={share}"]
    settings = {word.partition("=")[0]: word for word in words}
    one, two = ([*(settings | {BATCH: f"{BATCH}={share * ranks}"}).values()] for ranks in (1, 2))
    calibration = json.loads(Path(cache, "accel_train", "calibration.json").read_text())
    curve = calibration["collectives"]["2"]["all_reduce"]
    links = [f"--latency-us={curve[0][1] / 2 * 1e6}", f"--intra-node={max(size / took for size, took in curve) / 1e9}"]
    said = last_json(output_of(1, "plan", *one, "--scale", "--gpus=2", *links, "--inter-node=1", "--json", cache=cache))
    planned = said["scale"]["points"][engine][1]
    seconds = [step_seconds(1, one, cache), step_seconds(2, [*two, f"engine={engine}"], cache)]
    measured = seconds[0] / seconds[1]
    print({name: round(value, 4) for name, value in planned["parts"].items()}, links, seconds)
    how = (
        f"the efficiency of two processes that `plan --scale` gives ({planned['efficiency']:.2f}) over the measured one "
        f"({measured:.2f}), or the reverse where that is larger; vit, {engine}, {share} rows on each"
    )
    ratio = planned["efficiency"] / measured
    goal = None if engine == "fsdp2" else GOAL
    record(Figure(f"scale/vit_{engine}", max(ratio, 1 / ratio), 0.0, goal, how, better="lower"))


def step_seconds(world_size: int, words: list[str], cache: str) -> float:
    """The median step that `bench` measures."""
    steps = ["--steps=8", "--warmup=2", "--rounds=1", "--json"]
    return float(last_json(output_of(world_size, "bench", *words, *steps, cache=cache))["step_seconds"])


def last_json(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output[output.index("{\n") :])
    return found
