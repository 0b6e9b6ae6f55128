"""Encoders of images, speech and captions with a map each into one space.

Parameters: image_encoder.*, audio_encoder.*, text_encoder.* (the backbones' own names), aligner.image.*, aligner.audio.*,
aligner.text.*, logit_scale.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from accel_train.config.multimodal import AlignerSection
from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.errors import UserError
from accel_train.models.audio import AudioEncoder, build_audio_encoder
from accel_train.models.contrastive_model import clamped_exp
from accel_train.models.dual_encoder import architecture_value, build_backbone, output_width
from accel_train.models.patches import multiply_patches


class Senses(nn.Module):
    """An image encoder, an audio encoder, or both, each with its map into the shared space."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: MultimodalAlignmentConfig | MultimodalLlmConfig) -> None:
        super().__init__()
        section, data = config.model, config.data
        for name, values in (("pixel_mean", data.image_mean), ("pixel_std", data.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.image_encoder: PreTrainedModel | None = None
        self.audio_encoder: AudioEncoder | None = None
        maps: dict[str, nn.Module] = {}
        if section.image is not None:
            assert section.aligner is not None
            self.image_encoder = build_backbone(
                section.image, "model.image", "num_channels", section.attention, data.image_size, keep_pooler=False
            )
            multiply_patches(self.image_encoder)
            maps["image"] = projection(output_width(self.image_encoder.config), section.aligner)
        if section.audio is not None:
            assert section.aligner is not None
            self.audio_encoder = build_audio_encoder(
                section.audio, sample_rate=data.sample_rate, num_samples=data.num_audio_samples
            )
            maps["audio"] = projection(self.audio_encoder.width, section.aligner)
        self.aligner = nn.ModuleDict(maps)

    def image_tokens(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, S, S) uint8 to the encoder's tokens (n, T, W) and the vector (n, W) that stands for the image."""
        assert self.image_encoder is not None
        pixels = (pixel_values.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std
        output = self.image_encoder(pixel_values=pixels)
        hidden: Tensor = output.last_hidden_state
        pooled: Tensor | None = output.pooler_output
        vector = hidden[:, 0] if pooled is None else pooled.flatten(1)
        # Convolutional backbones give (n, W, height, width).
        return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden, vector

    def audio_tokens(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """(n, S) to the encoder's tokens (n, T, W) and which of them come from real sound, (n, T)."""
        assert self.audio_encoder is not None
        tokens, real = self.audio_encoder(waveform, num_samples)
        return tokens, real

    def vectors(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the aligner reads of each modality in the batch, (n, W): stored vectors as they are, or the encoders'."""
        found = {kind: batch[f"{kind}_vector"] for kind in self.aligner if f"{kind}_vector" in batch}
        if "pixel_values" in batch:
            found["image"] = self.image_tokens(batch["pixel_values"])[1]
        if "waveform" in batch:
            found["audio"] = mean_of(*self.audio_tokens(batch["waveform"], batch["num_audio_samples"]))
        return found


class MultimodalAligner(Senses):
    """Images, recordings and captions as unit vectors of one space."""

    def __init__(self, config: MultimodalAlignmentConfig) -> None:
        super().__init__(config)
        section = config.model
        self.text_encoder = build_backbone(
            section.text, "model.text", "vocab_size", section.attention, None, keep_pooler=False
        )
        longest = architecture_value(self.text_encoder.config, "max_position_embeddings")
        if longest is not None and config.data.max_text_length > longest:
            raise UserError(
                f"data.max_text_length is {config.data.max_text_length}, but model.text reads {longest} tokens at most."
            )
        self.aligner["text"] = projection(output_width(self.text_encoder.config), section.aligner)
        self.max_logit_scale = section.max_logit_scale
        log_scale = torch.tensor([math.log(1 / section.temperature)])
        if section.learn_temperature:
            self.logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("logit_scale", log_scale)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of the modalities whose inputs are in the batch, L2-normalised in fp32, and logit_scale (1,).

        pixel_values (n, 3, S, S) uint8; waveform (n, samples) with num_audio_samples (n,); input_ids and attention_mask
        (n, L). In their place image_vector, audio_vector, text_vector (n, W), what the encoders gave for them. Returns
        image_features, audio_features, text_features, each (n, dim).
        """
        outputs = {
            f"{kind}_features": unit_length(self.aligner[kind](vector)) for kind, vector in self.vectors(batch).items()
        }
        outputs["logit_scale"] = clamped_exp(self.logit_scale, self.max_logit_scale)
        return outputs

    def vectors(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = super().vectors(batch)
        if "input_ids" in batch:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            found["text"] = mean_of(self.text_encoder(**inputs).last_hidden_state, batch["attention_mask"])
        return found


def projection(width: int, section: AlignerSection) -> nn.Module:
    """From `width` to the shared space: linear, or with a hidden layer."""
    if section.hidden is None:
        return nn.Linear(width, section.dim)
    return nn.Sequential(nn.Linear(width, section.hidden), nn.GELU(), nn.Linear(section.hidden, section.dim))


def mean_of(tokens: Tensor, real: Tensor) -> Tensor:
    """(n, T, W) to (n, W): the mean of those that count, at least one of each row."""
    weights = real.to(tokens.dtype).unsqueeze(1)
    return (weights @ tokens / weights.sum(2, keepdim=True)).squeeze(1)


def unit_length(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
