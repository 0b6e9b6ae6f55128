"""Stored features of frozen encoders (`data.features`): when a multimodal task may read them in the place of its inputs."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from accel_train.config.multimodal import LogMelConv, SpokenImageData
from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.data.encoder_features import features_path, stored_encoders, vector_width
from accel_train.data.speech import speech_tokenizer
from accel_train.errors import UserError
from accel_train.models.weights_digest import digest_of_weights
from accel_train.optim.frozen import never_trained

Config = MultimodalAlignmentConfig | MultimodalLlmConfig
ABOUT_FILES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Entries of a transformers configuration that say where a model came from, not what it computes."""


def describe_encoder(kind: str, model: nn.Module, config: Config) -> dict[str, Any]:
    """What decides the vectors of a modality, as JSON gives it back."""
    data, encoder = config.data, model.get_submodule(f"{kind}_encoder")
    backbones = [module for module in encoder.modules() if isinstance(module, PreTrainedModel)][:1]
    architecture: list[dict[str, Any]] = [
        {key: value for key, value in backbone.config.to_dict().items() if key not in ABOUT_FILES}
        for backbone in backbones
    ]
    if kind == "image":
        inputs = data.model_dump(include={"image_size", "resize", "decoding", "image_mean", "image_std"})
    elif kind == "audio":
        inputs = data.model_dump(include={"sample_rate", "max_audio_seconds"})
        if isinstance(config.model.audio, LogMelConv):
            architecture.append(config.model.audio.model_dump(exclude={"dropout"}))
    else:
        vocabulary = json.dumps(speech_tokenizer(data).vocabulary(), sort_keys=True)
        inputs = data.model_dump(include={"max_text_length", "text_cleaning"})
        inputs["vocabulary"] = hashlib.sha256(vocabulary.encode()).hexdigest()
    about = {
        "weights": digest_of_weights(encoder),
        "architecture": architecture,
        "inputs": inputs,
        "precision": config.precision,
    }
    found: dict[str, Any] = json.loads(json.dumps(about, default=str))
    return found


def example_vectors(data: SpokenImageData, kinds: Iterable[str], num_rows: int) -> dict[str, Tensor]:
    """Zeros in the shapes of a training batch's vectors."""
    assert data.features is not None
    width = {kind: vector_width(data.features, data.train_split, kind) for kind in kinds}
    return {f"{kind}_vector": torch.zeros(num_rows, width[kind]) for kind in width}


def refuse_trained_encoders(model: nn.Module, config: Config, kinds: Iterable[str]) -> None:
    """Raises UserError for an encoder that has a learning rate in any phase of the run."""
    frozen = never_trained(model, config)
    for kind in kinds:
        trained = [name for name, _ in model.named_parameters() if name.startswith(f"{kind}_encoder.")]
        trained = [name for name in trained if name not in frozen]
        if trained:
            raise UserError(
                f"data.features: {config.data.features} stands for the outputs of frozen encoders, but the {kind} encoder "
                f"trains ({trained[0]} and {len(trained) - 1} more). Set lr 0 for it in every phase, or data.features to "
                "null."
            )


def check_stored(model: nn.Module | None, config: Config, kinds: Iterable[str], splits: Iterable[str]) -> None:
    """Raises UserError where a split's stored features are not those of the model's encoders.

    model: with its weights. None: of a resumed run; all splits must then be of the same encoders as the first.
    """
    folder = config.data.features
    assert folder is not None
    wanted = None if model is None else {kind: describe_encoder(kind, model, config) for kind in kinds}
    for split in splits:
        stored, path = stored_encoders(folder, split, kinds), features_path(folder, split)
        wanted = wanted or stored
        for kind in kinds:
            about = wanted[kind]
            if differing := [key for key in about if stored[kind].get(key) != about[key]]:
                raise UserError(
                    f"data.features: {path} is not from this run's {kind} encoder; different: {', '.join(differing)}. "
                    "Write it again with `accel-train embed` and this configuration, or set data.features to null."
                )
