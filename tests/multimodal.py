"""Tiny configurations of both phases for the data of `tests/spoken.py`."""

from typing import Any

from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig

SENSES: dict[str, Any] = {
    "image": {"architecture": "convnext", "config": {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [8, 16]}},
    "audio": {"type": "log_mel_conv", "num_mels": 16, "width": 16, "num_layers": 2},
    "aligner": {"dim": 16},
}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
BERT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
DATA: dict[str, Any] = {
    "tokenizer": "dataset:tokenizer",
    "max_text_length": 10,
    "image_size": 16,
    "sample_rate": 8000,
    "max_audio_seconds": 0.4,
    "global_batch_size": 16,
    "micro_batch_size": 16,
    "num_workers": 0,
}


def alignment_config(path: str, run_dir: str, **changes: Any) -> MultimodalAlignmentConfig:
    """`changes` are sections or keys of the configuration."""
    values = {
        "task": "multimodal_alignment",
        "run_dir": run_dir,
        "max_steps": 20,
        "model": SENSES | {"text": {"architecture": "bert", "config": BERT}, "temperature": 0.2},
        "data": DATA | {"path": path},
        "optimizer": {"towers": [{"name": "all", "layers": ["."], "lr": 3e-3}]},
    }
    return MultimodalAlignmentConfig.model_validate(values | changes)


def llm_config(path: str, run_dir: str, *, changes: dict[str, Any] | None = None, **model: Any) -> MultimodalLlmConfig:
    """`model` changes keys of the model's section, `changes` sections or keys of the configuration."""
    section = SENSES | {"projector": {"num_tokens": 3}, "llm": {"architecture": "llama", "config": LLAMA}} | model
    values = {
        "task": "multimodal_llm",
        "run_dir": run_dir,
        "max_steps": 20,
        "model": section,
        "data": DATA | {"path": path},
        "optimizer": {"towers": [{"name": "all", "layers": ["."], "lr": 3e-3}]},
    }
    return MultimodalLlmConfig.model_validate(values | (changes or {}))
