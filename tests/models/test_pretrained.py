import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.pretrained import load_strictly


@pytest.fixture
def folder(tiny, make_config, tmp_path: Path) -> Path:
    CLIPModel(build_contrastive_model(make_config(tiny["clip"])).config).save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path, make_config) -> str:
    with pytest.raises(UserError) as caught:
        build_contrastive_model(make_config({"type": "clip", "pretrained": str(folder)}))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_folder_is_not_looked_for_elsewhere(make_config, tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "openai" / "clip", make_config)


def test_incomplete_folders(folder: Path, make_config) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no .safetensors file. Pickled weights aren't read" in refusal(folder, make_config)
    (folder / "config.json").write_text("{")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    assert "config.json is not valid JSON" in refusal(folder, make_config)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder, make_config)


def test_a_truncated_weight_file(folder: Path, make_config) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "can't be loaded" in refusal(folder, make_config)


def test_missing_weights_are_named(folder: Path, make_config) -> None:
    change_weights(folder, lambda weights: weights.pop("visual_projection.weight"))
    assert "missing: visual_projection.weight" in refusal(folder, make_config)


def test_weights_left_over_are_named(folder: Path, make_config) -> None:
    change_weights(folder, lambda weights: weights.update({"visual_projction.weight": torch.zeros(2)}))
    assert "unexpected: visual_projction.weight" in refusal(folder, make_config)


def test_weights_of_another_shape_are_named(folder: Path, make_config) -> None:
    change_weights(folder, lambda weights: weights.update({"visual_projection.weight": torch.zeros(3, 3)}))
    assert "of another shape: visual_projection.weight ((3, 3) there, (16, 32) here)" in refusal(folder, make_config)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_in_a_folder_is_neither_run_nor_asked_about(folder: Path, make_config, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    canary = folder / "sang"
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w')\nfrom transformers import BertConfig as EvilConfig, BertModel as EvilModel\n"
    )
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"})
    tower = {"pretrained": str(folder)}
    other = {"architecture": "bert", "config": {"num_hidden_layers": 1}}
    with pytest.raises(UserError, match=r"config\.json can't be used"):
        build_contrastive_model(make_config({"type": "dual_encoder", "image": tower, "text": other}))
    assert not canary.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("nested", [False, True])
def test_kernels_from_the_hub_are_not_asked_for(key: str, nested: bool, folder: Path, make_config) -> None:
    asked = {key: "evil/kernel"}
    change_config(folder, **({"vision_config": asked} if nested else asked))
    assert "which is code from the Hugging Face Hub" in refusal(folder, make_config)


def test_an_adapter_beside_the_weights_is_refused(folder: Path, make_config) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "holds a model and an adapter" in refusal(folder, make_config)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": [1]},
        {"projection_dim": "x"},
        {"projection_dim": -3},
        {"vision_config": 5},
        {"text_config": {"num_attention_heads": 0}},
        {"dtype": "evil"},
        {"id2label": 5},
    ],
)
def test_values_that_make_no_model(changes: dict, folder: Path, make_config) -> None:
    change_config(folder, **changes)
    refusal(folder, make_config)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_not_cast(kind: torch.dtype) -> None:
    model = torch.nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2, dtype=kind), "bias": torch.zeros(2)}
    with pytest.raises(UserError, match=rf"here: x don't fit the model: weight holds {kind} there"):
        load_strictly(model, weights, "here: x")
