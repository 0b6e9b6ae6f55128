"""What the loop costs beside a bare one, and micro-batches beside the whole batch: by `accel-train bench` itself."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from accel_train.tools.bench.figures import Figure
from tests.distributed.ranks import run_ranks

QUICKSTART = ["configs/quickstart.yaml"]
VIT = [
    "configs/small/chinese_clip.yaml",
    "data.image_size=64",
    "data.global_batch_size=64",
    "data.micro_batch_size=64",
    "model.config.vision_config.hidden_size=192",
    "model.config.vision_config.intermediate_size=768",
    "model.config.vision_config.num_hidden_layers=12",
    "model.config.vision_config.num_attention_heads=3",
    "model.config.text_config.num_hidden_layers=6",
]
NO_WORKERS = "data.num_workers=0"


def measured(world_size: int, config: list[str], *overrides: str, rounds: int = 12) -> dict[str, Any]:
    """What `accel-train bench --json` finds; an override takes the place of what `config` says of the same key."""
    settings = {word.partition("=")[0]: word for word in [*config, NO_WORKERS, *overrides]}
    words = ["bench", *settings.values(), "--steps=3", "--warmup=2", f"--rounds={rounds}", "--json"]
    ranks = run_ranks(world_size, "-m", "accel_train", *words)
    assert [rank.exit_code for rank in ranks] == [0] * world_size, ranks[0].output
    found: dict[str, Any] = json.loads(ranks[0].output[ranks[0].output.index("{\n") :])
    return found


@pytest.mark.parametrize("model", ["quickstart", "vit"])
@pytest.mark.parametrize(("world_size", "goal"), [(1, 0.98), (2, 0.97)])
def test_loop(model: str, world_size: int, goal: float, record: Callable[[Figure], None]) -> None:
    config = {"quickstart": QUICKSTART, "vit": VIT}[model]
    share = (128 if model == "quickstart" else 64) // world_size
    value, spread = measured(world_size, config, f"data.micro_batch_size={share}")["to_bare_loop"]
    ranks = "one process" if world_size == 1 else f"DDP on {world_size} processes over gloo"
    what = {"quickstart": "quickstart.yaml (ConvNeXt and BERT, 1.0 M)", "vit": "12-layer ViT-tiny and 6-layer BERT"}[
        model
    ]
    how = f"accel-train bench: samples/s over those of a bare PyTorch loop on batches in memory; {what}, {ranks}, one thread"
    record(Figure(f"loop/{model}_{world_size}", value, spread, goal, how))


@pytest.mark.parametrize(
    ("name", "overrides", "goal"),
    [
        ("full", [], 1.30),
        ("frozen_image", ["optimizer.towers.image.lr=0"], None),
        ("frozen_image_kept", ["optimizer.towers.image.lr=0", "compute.kept_graphs=8"], 1.05),
    ],
)
def test_cached_step(name: str, overrides: list[str], goal: float | None, record: Callable[[Figure], None]) -> None:
    value, spread = measured(1, VIT, "data.micro_batch_size=8", *overrides)["to_whole_batch"]
    how = (
        "accel-train bench: time of a step in 8 micro-batches over that of the same global batch at once; 12-layer ViT-tiny "
        f"and 6-layer BERT, {', '.join(overrides) or 'all layers trained'}, one process, one thread"
    )
    record(Figure(f"step/cached_{name}", value, spread, goal, how, better="lower"))


def test_memory_of_the_cached_step(record: Callable[[Figure], None]) -> None:
    """Micro-batches of one size, more and more of them: features of the whole batch are all that grows."""
    extra = {}
    for num in (2, 64):
        size = ["data.micro_batch_size=8", f"data.global_batch_size={8 * num}"]
        words = [word for word in VIT if not word.startswith(("data.micro", "data.global"))]
        (done,) = run_ranks(1, "-m", "tests.benchmarks.cached_memory", *words, NO_WORKERS, *size)
        assert done.exit_code == 0, done.output
        extra[num] = float(done.output.split()[-1])
    how = "peak of memory above weights, state and batch: 64 micro-batches of 8 over 2; 12-layer ViT-tiny and 6-layer BERT"
    record(Figure("step/cached_memory_64_to_2", extra[64] / extra[2], 0.0, 1.05, how, better="lower"))
