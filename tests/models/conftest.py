"""Tiny models of every family, and a batch for them: 32 px images, 12 tokens, two layers of width 32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig

BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
VIT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "vit": VIT | {"intermediate_size": 64},
    "dinov2": VIT,
    "convnext": STAGES,
    "resnet": STAGES | {"embedding_size": 8, "layer_type": "basic"},
}
TINY: dict[str, dict[str, Any]] = {
    "chinese_clip": {"type": "chinese_clip", "size": "tiny", "config": {"text_config": {"vocab_size": 100}}},
    "clip": {"type": "clip", "size": "tiny", "config": {"text_config": {"vocab_size": 100, "eos_token_id": 3}}},
    "siglip": {"type": "siglip", "size": "tiny", "config": {"text_config": {"vocab_size": 100}}},
} | {
    name: {
        "type": "dual_encoder",
        "projection_dim": 16,
        "batch_norm": "frozen",
        "image": {"architecture": name, "config": config},
        "text": {"architecture": "bert", "config": BERT},
    }
    for name, config in IMAGE_TOWERS.items()
}


@pytest.fixture
def tiny() -> dict[str, dict[str, Any]]:
    """Model sections by name."""
    return TINY


@pytest.fixture
def make_config() -> Callable[..., ContrastiveConfig]:
    """A run configuration around a model section; further arguments change its data section."""

    def make(model: dict[str, Any], loss: str = "info_nce", **data: Any) -> ContrastiveConfig:
        sizes = {"image_size": 32, "max_text_length": 12, "global_batch_size": 6, "micro_batch_size": 6}
        return ContrastiveConfig.model_validate(
            {
                "run_dir": "runs/test",
                "max_steps": 1,
                "model": model,
                "loss": {"name": loss},
                "data": {"path": "data", "tokenizer": "vocab.txt"} | sizes | data,
                "optimizer": {"towers": [{"name": "all", "layers": [".*"], "lr": 1e-3}]},
            }
        )

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Six rows; texts end with token 3 and are padded with 0."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 100, (6, 12), generator=generator)
    attention_mask = torch.ones(6, 12, dtype=torch.int64)
    for row, length in enumerate([12, 4, 7, 12, 9, 3]):
        input_ids[row, length - 1] = 3
        input_ids[row, length:] = 0
        attention_mask[row, length:] = 0
    return {
        "pixel_values": torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
    }
