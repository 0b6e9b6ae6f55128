"""The original's own description of a model, beside its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from tests.models.originals import ChineseCLIP, VisualTransformer

TOLD = {
    "vision_width": 128,
    "vision_head_width": 32,
    "text_hidden_size": 128,
    "text_num_attention_heads": 4,
    "text_hidden_act": "relu",
    "text_hidden_dropout_prob": 0.0,
    "vision_layers": 2,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(ChineseCLIP(VisualTransformer(width=128)).state_dict(), tmp_path / "cn.pt")
    return tmp_path / "cn.pt"


def described(weights: Path, make_config: Any, told: Any, **config: Any) -> Any:
    weights.with_name("model_config.json").write_text(told if isinstance(told, str) else json.dumps(told))
    section = {"type": "chinese_clip", "pretrained": str(weights), "config": config}
    return build_contrastive_model(make_config(section)).config


def test_it_tells_what_shapes_cannot(weights: Path, make_config: Any) -> None:
    found = described(weights, make_config, TOLD)
    assert found.vision_config.num_attention_heads == 4
    text = found.text_config
    assert (text.num_attention_heads, text.hidden_act, text.hidden_dropout_prob) == (4, "relu", 0.0)
    assert text.attention_probs_dropout_prob == 0.1, "what it leaves out follows the original's rule"


def test_the_runs_own_configuration_comes_first(weights: Path, make_config: Any) -> None:
    found = described(weights, make_config, TOLD, text_config={"num_attention_heads": 8})
    assert (found.text_config.num_attention_heads, found.text_config.hidden_act) == (8, "relu")
    assert found.vision_config.num_attention_heads == 4


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (TOLD | {"vision_width": 64}, "describes another model: vision_width is 64, and the weights in .* have 128"),
        (TOLD | {"text_hidden_size": 768}, "describes another model: text_hidden_size is 768"),
        ("{", "is not valid JSON"),
        ("[]", "holds a list; it must be an object"),
    ],
)
def test_a_description_that_does_not_fit(told: Any, message: str, weights: Path, make_config: Any) -> None:
    with pytest.raises(UserError, match=message):
        described(weights, make_config, told)
