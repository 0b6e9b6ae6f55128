"""Speed on a CUDA device, for `make bench-gpu`: samples/s, utilisation, memory, and the largest exact batch.

Weights are random, which changes no figure, and the data is in the package or made up: nothing is downloaded.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from accel_train.config.load import load_config
from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.tasks.task import Batch
from accel_train.tools.bench.figures import Figure
from accel_train.train import advance, global_batches
from tests import labelled
from tests.data.conftest import encoded_image
from tests.short_runs import ROOT

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]
TOWERS = [
    {"name": "image", "lr": 1e-5, "layers": "chinese_clip_image"},
    {"name": "text", "lr": 1e-5, "layers": "chinese_clip_text"},
    {"name": "heads", "lr": 1e-5, "layers": [r"^visual_projection\.", r"^text_projection\."]},
    {"name": "temperature", "lr": 1e-5, "layers": ["^logit_scale$"]},
]


def contrastive(size: str, batch: int, micro_batch: int, kept_graphs: int = 1) -> dict[str, Any]:
    """A Chinese-CLIP of this size on the emoji inside the package, scaled to its 224 px."""
    return {
        "run_dir": "runs/bench",
        "max_steps": 1000,
        "precision": "bf16",
        "model": {"type": "chinese_clip", "size": size, "attention": "sdpa"},
        "data": {
            "path": "sample:emoji-zh",
            "valid_split": None,
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 52,
            "pad_to_multiple_of": 8,
            "image_size": 224,
            "global_batch_size": batch,
            "micro_batch_size": micro_batch,
            "num_workers": 12,
        },
        "optimizer": {"towers": TOWERS},
        "compute": {"compile": True, "kept_graphs": kept_graphs},
    }


def classifier(folder: Path) -> dict[str, Any]:
    """A LLaMA of 1.0 G parameters on made-up texts, each of 512 tokens."""
    return {
        "task": "sequence_classification",
        "run_dir": "runs/bench",
        "max_steps": 1000,
        "precision": "bf16",
        "model": {
            "architecture": "llama",
            "attention": "sdpa",
            "config": {
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 22,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
            },
        },
        "data": {
            "path": str(labelled.write_dataset(folder / "texts", train=2000)),
            "valid_split": None,
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 512,
            "pad_to_multiple_of": 512,
            "global_batch_size": 64,
            "micro_batch_size": 64,
            "num_workers": 4,
        },
        "optimizer": {"towers": [{"name": "decoder", "lr": 1e-5, "layers": "llama"}]},
        "compute": {"compile": True},
    }


def benched(config: dict[str, Any], folder: Path, *arguments: str) -> dict[str, Any]:
    """What `accel-train bench --json` finds."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "accel_train", "bench", str(path), *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["device"] == "cuda"
    return found


def figures(name: str, found: dict[str, Any], what: str) -> list[Figure]:
    """Throughput without a goal, utilisation with one, the loop, and memory."""
    how = f"accel-train bench: {what}, bf16, compiled blocks, fused AdamW, sdpa; {found['peak']}"
    rate, spread = found["samples_per_second"], found["samples_per_second_spread"]
    taken = [
        Figure(f"gpu/{name}_samples_per_second", rate, spread, None, how, unit="samples/s"),
        Figure(f"gpu/{name}_mfu", found["mfu"], found["mfu"] * spread / rate, 0.5, how),
        Figure(f"gpu/{name}_memory", found["peak_memory_gib"][0], 0.0, None, how, better="lower", unit="GiB"),
        Figure(f"gpu/{name}_waiting_for_data", found["waiting_for_data"], 0.01, 0.02, how, better="lower"),
    ]
    if found["to_bare_loop"] is not None:
        taken.append(Figure(f"gpu/{name}_loop", *found["to_bare_loop"], 0.98, how))
    return taken


@pytest.mark.parametrize(
    ("size", "batch", "micro_batch", "kept_graphs"),
    [("vit_b_16", 1024, 1024, 1), ("vit_b_16", 4096, 1024, 2), ("vit_l_14", 1024, 128, 5)],
)
def test_contrastive(
    size: str, batch: int, micro_batch: int, kept_graphs: int, record: Callable[[Figure], None], tmp_path: Path
) -> None:
    """As many graphs are kept as leave a fifth of the memory free: beyond, the allocator starts over in every step."""
    config = contrastive(size, batch, micro_batch, kept_graphs)
    found = benched(config, tmp_path, "--steps=10", "--warmup=3", "--rounds=6")
    how = f"Chinese-CLIP {size}, a global batch of {batch} in micro-batches of {micro_batch}, {kept_graphs} graphs kept"
    for figure in figures(f"{size}_at_{batch}", found, how):
        record(figure)


def test_classifier_of_a_billion(record: Callable[[Figure], None], tmp_path: Path) -> None:
    found = benched(classifier(tmp_path), tmp_path, "--steps=10", "--warmup=3", "--rounds=6")
    for figure in figures("llama_1b", found, "a LLaMA of 22 layers of width 2,048, 64 texts padded to 512 tokens"):
        record(figure)
    tokens = found["samples_per_second"] * 512
    record(
        Figure(
            "gpu/llama_1b_tokens_per_second",
            tokens,
            0.0,
            None,
            "samples/s times 512, padding included",
            unit="tokens/s",
        )
    )


def test_the_largest_exact_batch(record: Callable[[Figure], None], tmp_path: Path) -> None:
    """One loss over 262,144 pairs on one device, in 256 micro-batches. Compilation comes before the step that is timed."""
    batch = 262_144
    config = contrastive("vit_b_16", batch, 1024)
    config["data"] |= {"path": str(pairs(tmp_path / "pairs", batch)), "num_workers": 14}
    config |= {"run_dir": str(tmp_path / "run"), "max_steps": 1}
    path = tmp_path / "largest.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    loaded = load_config(path)
    engine = build_engine(loaded)
    log = RunLog(tmp_path / "run", is_main=True, rank=0)
    run = set_up(loaded, engine, log, StopRequest(), fresh=False)
    global_batch = next(global_batches(run))
    compile_for(engine, global_batch.micro_batches[0])
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    losses, norms = advance(run, global_batch, [batch])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    assert norms.isfinite().all() and all(loss.isfinite() for loss in losses.losses.values())
    memory = torch.cuda.max_memory_allocated() / 2**30
    log.close()
    engine.close()
    how = "one step of Chinese-CLIP vit_b_16 at a global batch of 262,144 in micro-batches of 1,024, bf16, compiled blocks"
    whole = torch.cuda.get_device_properties(0).total_memory / 2**30
    record(Figure("gpu/largest_batch_memory", memory, 0.0, whole, how, better="lower", unit="GiB"))
    record(
        Figure(
            "gpu/largest_batch_samples_per_second", batch / seconds, 0.0, None, f"{how}, data at hand", unit="samples/s"
        )
    )


def compile_for(engine: Engine, micro_batch: Batch) -> None:
    """One pass without gradients and one with them, whose gradients are dropped."""
    batch = engine.to_device(micro_batch)
    with torch.no_grad():
        engine.model(batch)
    torch.stack([value.sum() for value in engine.model(batch).values()]).sum().backward()
    engine.discard_gradients()
    torch.cuda.synchronize()


def pairs(folder: Path, number: int) -> Path:
    """Images of coloured noise, each with 64 captions of its own, all of them different."""
    writer = SplitWriter(folder / "train")
    for index in range(number // 64):
        writer.add_image(f"image{index}", encoded_image(index, (224, 224), "JPEG"))
    for index in range(number):
        writer.add_text(f"text{index}", f"picture {index // 64} seen by {index % 64}", [index // 64])
    content = {"format_version": FORMAT_VERSION, "splits": {"train": writer.close()}}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    save_tokenizer(caption_vocabulary(["picture seen by 0123456789"], 1000), folder / "tokenizer")
    return folder
