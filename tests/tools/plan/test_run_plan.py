"""The plan of every shipped configuration, and of small changes to one."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from accel_train.config.load import load_config
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError
from accel_train.models.sizes import SIZES
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.build import build_task
from accel_train.tools.plan.command import plan
from accel_train.tools.plan.run_plan import make_plan
from accel_train.tools.plan.tables import as_dict
from tests.small_data import SAMPLE, data_for

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = str(CONFIGS / "small" / "dual_encoder_llrd.yaml")
SAMPLE_PAIRS = 5816
OWN_TOKENIZER = "data.tokenizer=dataset:tokenizer"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hugging Face folders with a configuration and an empty file where weights would be: a plan reads no weights."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    root = tmp_path_factory.mktemp("models")
    size = SIZES["chinese_clip"]["vit_b_16"]
    configurations = {
        "convnext": transformers.ConvNextConfig(),
        "bert": transformers.BertConfig(vocab_size=21128),
        "chinese_clip": transformers.ChineseCLIPConfig(**size),
        "llama": transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2),
        "vit": transformers.ViTConfig(num_hidden_layers=2),
        "whisper": transformers.WhisperConfig(encoder_layers=2, decoder_layers=1),
    }
    for name, configuration in configurations.items():
        configuration.save_pretrained(root / name)
        (root / name / "model.safetensors").touch()
    return {name: str(root / name) for name in configurations}


def small_config(*overrides: str) -> RunConfig:
    """The small configuration on batches of 256, which are two micro-batches of 128 on one rank."""
    given = any(word.startswith("data.global_batch_size=") for word in overrides)
    return load_config(SMALL, [*overrides, *([] if given else ["data.global_batch_size=256"])])


def planned(path: str, *overrides: str, ranks: int | None = None) -> dict[str, Any]:
    config = small_config(*overrides) if path == SMALL else load_config(path, list(overrides))
    return as_dict(make_plan(config, world_size=ranks))


@pytest.mark.parametrize("path", sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")))
def test_every_configuration_can_be_planned(path: str, folders: dict[str, str], tmp_path: Path) -> None:
    senses = [f"model.image.pretrained={folders['vit']}", f"model.audio.pretrained={folders['whisper']}"]
    changes = {
        "chinese_clip_muge.yaml": [f"model.pretrained={folders['chinese_clip']}"],
        "dual_encoder_llrd.yaml": [
            f"model.image.pretrained={folders['convnext']}",
            f"model.text.pretrained={folders['bert']}",
        ],
        "sequence_classification.yaml": [f"model.pretrained={folders['llama']}", OWN_TOKENIZER],
        "multimodal_llm_phase1.yaml": [*senses, f"model.text.pretrained={folders['bert']}", OWN_TOKENIZER],
        "multimodal_llm_phase2.yaml": [*senses, OWN_TOKENIZER, "data.end_token=null"],
    }
    changes |= {
        f"scorer_{size}_data.yaml": [f"model.clip.pretrained={folders['chinese_clip']}", OWN_TOKENIZER]
        for size in ("small", "medium", "large")
    }
    data = data_for(CONFIGS / path, tmp_path)
    few = [] if f"data.path={SAMPLE}" in data else ["data.global_batch_size=8", "data.micro_batch_size=8"]
    found = planned(str(CONFIGS / path), *data, *few, *changes.get(path, []))
    assert found["total_steps"] == found["steps_per_epoch"] * load_config(CONFIGS / path).num_epochs > 0
    assert {name: owner for name, owner in owners(found).items() if owner is None} == {
        parameter["name"]: None for parameter in found["parameters"] if parameter["frozen"]
    }


def owners(found: dict[str, Any]) -> dict[str, str | None]:
    return {parameter["name"]: parameter["group"] for parameter in found["parameters"]}


def test_rates_of_the_dual_encoder(folders: dict[str, str]) -> None:
    """The eight text layers of the recipe, the last image stage, the heads."""
    found = planned(
        str(CONFIGS / "dual_encoder_llrd.yaml"),
        "data.path=sample:emoji-zh",
        f"model.image.pretrained={folders['convnext']}",
        f"model.text.pretrained={folders['bert']}",
    )
    rates = {group["name"]: group["lr"] for group in found["groups"] if not group["name"].endswith("no_decay")}
    text = [rates[f"text.{layer:02d}"] for layer in range(12, 4, -1)]
    assert text == pytest.approx(
        [5.0e-5, 4.5e-5, 4.05e-5, 3.645e-5, 3.2805e-5, 2.9525e-5, 2.657e-5, 2.391e-5], rel=1e-3
    )
    assert {name: lr for name, lr in rates.items() if "." not in name} == {
        "image": 1e-4,
        "pooling": 5e-5,
        "heads": 1e-3,
        "temperature": 1e-3,
    }
    image = {name for name, owner in owners(found).items() if owner in ("image", "image.no_decay")}
    assert all("stages.3" in name or "vision_model.layernorm" in name for name in image)
    assert len(image) == 2 + 4 + 3 * 9


def test_json_is_what_the_optimizer_gets(capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config()
    plan(config, as_json=True)
    found = json.loads(capsys.readouterr().out)
    with torch.device("meta"):
        model = build_task(config).build_model()
    groups = plan_groups(model, config.optimizer).groups
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in found["groups"]} == {
        group.name: (group.lr, group.weight_decay) for group in groups
    }
    assert [parameter["name"] for parameter in found["parameters"]] == [name for name, _ in model.named_parameters()]
    assert found["parameters"][0].keys() >= {"name", "group", "lr", "weight_decay", "max_grad_norm", "frozen", "shape"}


def test_steps_and_micro_batches() -> None:
    found = planned(SMALL, ranks=2)
    assert (found["num_samples"], found["steps_per_epoch"]) == (SAMPLE_PAIRS, SAMPLE_PAIRS // 256)
    assert (found["world_size"], found["num_micro_batches"]) == (2, 1)
    assert planned(SMALL, "data.last_batch=keep")["steps_per_epoch"] == SAMPLE_PAIRS // 256 + 1


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"global_batch_size is 256, but micro_batch_size × ranks = 128 × 3"):
        planned(SMALL, ranks=3)


def sizes(*overrides: str, ranks: int = 1) -> dict[str, int]:
    """The most that each part holds at any moment of a step."""
    return {part["name"]: part["most_bytes"] for part in planned(SMALL, *overrides, ranks=ranks)["memory"]}


def test_memory_of_one_rank() -> None:
    with torch.device("meta"):
        model = build_task(small_config()).build_model()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    alone = sizes()
    found = [alone[name] for name in ("weights", "gradients", "optimizer state")]
    assert found == pytest.approx([weights, weights, 2 * weights], rel=0.01)  # and buffers
    assert sizes("optimizer.name=lion", "optimizer.eps=1e-6")["optimizer state"] == pytest.approx(weights, rel=0.01)
    half = weights // 2
    for engine, held in (("fsdp2", half), ("zero1", weights), ("zero2", weights), ("zero3", half)):
        parts = sizes(f"engine={engine}", ranks=2)
        assert [parts["weights"], parts["optimizer state"]] == pytest.approx([held, weights], rel=0.01)
        assert 0.99 * half <= parts["gradients"] <= 1.01 * weights  # before they are reduced, some are whole


def test_frozen_parameters_need_no_gradient() -> None:
    whole, frozen = sizes(), sizes("optimizer.towers.image.lr=0", "optimizer.towers.image.layer_decay=1.0")
    assert frozen["gradients"] < whole["gradients"]
    assert frozen["weights"] == whole["weights"]
    assert frozen["activations"] < whole["activations"] / 2


def test_a_fixed_temperature_needs_no_other_towers() -> None:
    found = planned(SMALL, "model.learn_temperature=false")
    assert "logit_scale" not in owners(found)
    assert "temperature" not in {group["tower"] for group in found["groups"]}


def test_offload_counts_as_host_memory() -> None:
    config = small_config("engine=zero2", "zero.offload_optimizer=true")
    host = {part["name"] for part in as_dict(make_plan(config, world_size=2))["memory"] if part["on_host"]}
    assert host == {"optimizer state", "weights, DeepSpeed's copy", "gradients"}


def test_checkpointing_and_precision_shrink_activations() -> None:
    whole = sizes()["activations"]
    assert sizes("precision=bf16")["activations"] < 0.8 * whole
    assert sizes("compute.activation_checkpointing=true")["activations"] < 0.6 * whole


def test_activations_of_every_kept_graph_are_counted() -> None:
    split = ["data.global_batch_size=32", "data.micro_batch_size=4"]
    one = sizes(*split)["activations"]
    assert sizes(*split, "compute.kept_graphs=3")["activations"] == pytest.approx(3 * one, rel=0.1)
    assert sizes(*split, "compute.kept_graphs=100")["activations"] == pytest.approx(8 * one, rel=0.1)


def test_advice_and_its_switch(capsys: pytest.CaptureFixture[str]) -> None:
    steep = ["optimizer.towers.text.layer_decay=0.5", "optimizer.towers.image.layer_decay=0.3"]
    found = planned(SMALL, *steep)["advice"]
    assert any("text.layer_decay is 0.5; 0.8 to 0.95" in line for line in found)
    assert any("its lowest trained layer learns at 0.0024" in line for line in found)
    assert planned(SMALL, *steep, "advice=off")["advice"] == planned(SMALL)["advice"] == []
    plan(small_config(*steep))
    assert "Advice" in capsys.readouterr().out


def test_advice_that_holds_in_several_phases_is_given_once() -> None:
    phases = "phases=[{name: later, start: 1 epoch, towers: [{name: text, layer_decay: 0.5}]}]"
    found = planned(SMALL, "optimizer.towers.image.layer_decay=0.3", phases)["advice"]
    assert [line.partition(":")[0] for line in found] == ["Phase first", "Phase first", "Phase later"]


def test_text_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "lr.png"
    plan(small_config("optimizer.max_grad_norm=2.0"), picture=str(picture))
    shown = capsys.readouterr().out
    for part in (
        "text.00.no_decay",
        "Memory of one rank",
        "Worth knowing",
        "clipped to 2",
        "176 steps = 8 epochs of 22",
    ):
        assert part in shown
    assert picture.stat().st_size > 10_000


def test_other_ranks_stay_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan(small_config())
    assert capsys.readouterr().out == ""
