"""Promise 3 for what the other tests don't train with: each variant is killed once and ends as if it had not been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.tasks.contrastive import ContrastiveTask
from tests import rated, spoken
from tests.labelled import small_config, write_dataset
from tests.multimodal import DATA, SENSES, alignment_config, llm_config

SGD = ["optimizer.name=sgd", "optimizer.momentum=0.9"]


def assert_a_kill_changes_nothing(make: Callable[[str], Any], ranks: int) -> None:
    reference = make("reference")
    reference.finish(ranks=ranks)
    killed = make("killed")
    running = killed.start(ranks=ranks, step_seconds=0.05)
    killed.wait_for(lambda: killed.step() >= 4, running)
    running.kill()
    assert killed.steps_on_disk()
    assert "resuming from" in killed.finish(ranks=ranks)
    assert killed.metrics() == reference.metrics()
    ours, theirs = killed.whole_state(), reference.whole_state()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert killed.state()["loss_scale"] == reference.state()["loss_scale"]


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(1, SGD, id="sgd"),
        pytest.param(1, ["optimizer.name=sgd"], id="sgd without state"),
        pytest.param(1, ["optimizer.name=lion", "loss.chunk_size=3"], id="lion"),
        pytest.param(1, ["precision=bf16", "dropout=per_sample"], id="bf16 and per-sample dropout"),
        pytest.param(1, ["precision=fp16"], id="fp16"),
        pytest.param(1, ["data.last_batch=keep", "data.num_workers=2"], id="uneven last batch"),
        pytest.param(2, ["engine=zero2", "zero.offload_optimizer=true"], id="zero2 with offload"),
        pytest.param(2, ["engine=zero3", "zero.offload_optimizer=true"], id="zero3 with offload"),
        pytest.param(2, ["engine=zero1", *SGD], id="zero1 with sgd"),
        pytest.param(3, ["engine=ddp", "data.global_batch_size=6"], id="ddp on three ranks"),
        pytest.param(3, ["engine=fsdp2", "data.global_batch_size=6"], id="fsdp2 on three ranks"),
    ],
)
def test_killed_once(experiment: Callable[..., Any], ranks: int, overrides: list[str]) -> None:
    assert_a_kill_changes_nothing(lambda name: experiment(*overrides, "num_epochs=2", name=name), ranks)


@pytest.mark.parametrize(("mode", "ranks"), [("local", 1), ("local", 2), ("sync", 2)])
def test_batch_norm_that_trains_keeps_its_statistics(experiment: Callable[..., Any], mode: str, ranks: int) -> None:
    def make(name: str) -> Any:
        run = experiment("num_epochs=2", name=name)
        bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        resnet = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        run.config["model"] = {
            "type": "dual_encoder",
            "image": {"architecture": "resnet", "config": resnet},
            "text": {"architecture": "bert", "config": bert | {"vocab_size": 90}},
            "projection_dim": 8,
            "batch_norm": mode,
        }
        run.config["optimizer"]["towers"] = [{"name": "all", "lr": 1e-3, "layers": [".*"]}]
        return run

    assert_a_kill_changes_nothing(make, ranks)


def test_a_teacher_guides_on(experiment: Callable[..., Any], tmp_path: Path) -> None:
    """It is read anew and no part of a checkpoint; half of the patches are left out, another half in each step."""
    teacher = str(tmp_path / "teacher")
    section = {"teacher": teacher, "guides": ["image_features", "text_features", "similarity"]}

    def make(name: str) -> Any:
        run = experiment("num_epochs=2", "model.mask_ratio=0.5", name=name)
        run.config["distillation"] = section
        return run

    config = ContrastiveConfig.model_validate(make("teacher_run").config | {"distillation": None})
    projection = {"config": {**config.model.config, "projection_dim": 24}}
    task = ContrastiveTask(config.model_copy(update={"model": config.model.model_copy(update=projection)}))
    task.export(task.build_model(), teacher)
    assert_a_kill_changes_nothing(make, 2)


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_texts_of_like_length(experiment: Callable[..., Any], tmp_path: Path, engine: str) -> None:
    """Killed in the middle of a window of batches."""
    folder = write_dataset(tmp_path / "texts", train=42)

    def make(name: str) -> Any:
        run = experiment(f"engine={engine}", name=name)
        kept = {key: run.config[key] for key in ("schedule", "evaluation", "checkpoint", "log", "compute")}
        run.config = kept | small_config(folder, "run", max_steps=10, dropout="per_sample")
        run.config["data"]["global_batch_size"] = 8
        run.config["data"]["micro_batch_size"] = 2
        run.config["model"]["config"]["attention_dropout"] = 0.1
        run.config["optimizer"]["name"] = "adamw"
        run.config["optimizer"]["towers"][0]["lr"] = 1e-3
        return run

    assert_a_kill_changes_nothing(make, 2)


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_rated_images(experiment: Callable[..., Any], tmp_path: Path, engine: str) -> None:
    """A scorer on a CLIP, with explanations, so that the whole batch is compared."""
    folder = rated.write_dataset(tmp_path / "rated", 48)

    def make(name: str) -> Any:
        run = experiment(f"engine={engine}", name=name)
        clip = run.config["model"] | {"config": {"text_config": {"vocab_size": 60}}}
        run.config |= {"task": "scorer", "model": {"clip": clip, "quality_layers": 2}}
        run.config["data"]["path"] = str(folder)
        run.config["data"]["augmentation"] = {"horizontal_flip": 0.5}
        run.config["optimizer"]["towers"][2]["layers"] = ["_projection", r"logit_scale$", "_head", "^similarity_map"]
        return run

    assert_a_kill_changes_nothing(make, 2)


@pytest.mark.parametrize(
    ("phase", "engine"), [("alignment", "zero2"), ("llm", "ddp"), ("llm", "zero3"), ("llm", "fsdp2")]
)
def test_multimodal(experiment: Callable[..., Any], tmp_path: Path, phase: str, engine: str) -> None:
    """Three modalities compared over the whole batch; adapters and a projector beside what is frozen."""
    folder = str(spoken.write_dataset(tmp_path / "spoken", train=42))
    data = DATA | {
        "path": folder,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "augmentation": {"horizontal_flip": 0.5},
    }
    senses = SENSES | {"audio": SENSES["audio"] | {"dropout": 0.2}}
    lora = {"rank": 2, "alpha": 4, "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}
    towers = [
        {"name": "learnt", "layers": ["lora_", "^projector", "^audio"], "lr": 1e-3},
        {"name": "frozen", "layers": ["."], "lr": 0.0},
    ]

    def make(name: str) -> Any:
        run = experiment(f"engine={engine}", name=name)
        kept = {key: run.config[key] for key in ("schedule", "evaluation", "checkpoint", "log", "compute")}
        if phase == "alignment":
            config = alignment_config(folder, "run", data=data)
        else:
            config = llm_config(
                folder, "run", changes={"data": data, "optimizer": {"towers": towers}}, **senses, lora=lora
            )
        run.config = config.model_dump(mode="json") | kept | {"max_steps": 10, "engine": engine}
        return run

    assert_a_kill_changes_nothing(make, 2)
