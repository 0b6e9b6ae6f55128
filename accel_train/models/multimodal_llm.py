"""A decoder that is given aligned images and speech as a prefix of input embeddings, and writes the caption.

Parameters: those of `multimodal.py` without the text encoder, projector.image.*, projector.audio.*, and llm.* (the decoder's
own names, with LoRA's between them).
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)

from accel_train.config.contrastive import Backbone
from accel_train.config.multimodal_llm import MultimodalLlmConfig, ProjectorSection
from accel_train.errors import UserError
from accel_train.models.dual_encoder import random_architecture
from accel_train.models.lora import add_lora
from accel_train.models.multimodal import Senses, unit_length
from accel_train.models.pretrained import building_on_meta, load_model, read_config

FROM_THE_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


class Projector(nn.Module):
    """Aligned vectors of one modality to a prefix of input embeddings."""

    def __init__(self, section: ProjectorSection, dim: int, width: int) -> None:
        super().__init__()
        self.reads, self.num_tokens = section.reads, section.num_tokens
        # One vector gives all the prefix at once; of several each gives its own embedding.
        out = width * (section.num_tokens if section.reads == "features" else 1)
        hidden = section.hidden
        self.map: nn.Module = (
            nn.Linear(dim, out)
            if hidden is None
            else nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))
        )

    def forward(self, aligned: Tensor, real: Tensor | None) -> Tensor:
        """`features`: aligned (n, D). `tokens`: (n, T, D), of which those in real (n, T) count. Gives (n, num_tokens, W)."""
        if self.reads == "features":
            found: Tensor = self.map(aligned).unflatten(1, (self.num_tokens, -1))
            return found
        assert real is not None
        averaged: Tensor = self.map(stretches(real, self.num_tokens).to(aligned.dtype) @ aligned)
        return averaged


def stretches(real: Tensor, count: int) -> Tensor:
    """(n, T) booleans, the first ones true, to (n, count, T): weights that average the true ones over `count` stretches.

    As adaptive average pooling over each row's own length.
    """
    length = real.sum(1).view(-1, 1, 1)
    number = torch.arange(count, device=real.device).view(1, -1, 1)
    place = torch.arange(real.shape[1], device=real.device).view(1, 1, -1)
    start = (number * length).div(count, rounding_mode="floor")
    stop = -(-(number + 1) * length).div(count, rounding_mode="floor")
    inside = ((place >= start) & (place < stop)).float()
    return inside / inside.sum(2, keepdim=True)


class MultimodalLlm(Senses):
    """Senses, projectors and a decoder. `forward` reads a caption with the answers known; in eval mode it writes one too."""

    start_ids: Tensor

    def __init__(
        self,
        config: MultimodalLlmConfig,
        decoder: PreTrainedModel,
        start_ids: tuple[int, ...],
        end_id: int,
        pad_id: int,
    ) -> None:
        super().__init__(config)
        section = config.model
        width = decoder.get_input_embeddings().embedding_dim
        projectors: dict[str, nn.Module] = {}
        if section.projector is not None and section.aligner is not None:
            dim = section.aligner.dim
            projectors = {kind: Projector(section.projector, dim, width) for kind in self.aligner}
        self.projector = nn.ModuleDict(projectors)
        self.reads_tokens = section.projector is not None and section.projector.reads == "tokens"
        if section.lora is not None:
            add_lora(decoder, section.lora)
        self.llm = decoder
        self.register_buffer("start_ids", torch.tensor(start_ids, dtype=torch.int64), persistent=False)
        self.end_id, self.pad_id = end_id, pad_id
        if not start_ids and not projectors:
            raise UserError("model: there is no start token, no image and no audio, so nothing comes before a caption.")

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """logits (n, L, vocabulary) of each token of the caption given those before it, and the prefix.

        input_ids (n, L): the caption without start tokens, padded on the right; pixel_values, waveform and
        num_audio_samples as the senses need them, or image_vector and audio_vector (n, W) in their place. In eval mode
        `written` (n, L) holds the caption that greedy decoding gives, padded after its end.
        """
        embed = self.llm.get_input_embeddings()
        ids = batch["input_ids"]
        start = embed(self.start_ids.expand(len(ids), -1))
        before = torch.cat([start, *(prefix.to(start.dtype) for prefix in self._prefixes(batch))], 1)
        # Padding comes last and attention looks back alone, so no mask is needed.
        embedded = torch.cat([before, embed(ids[:, :-1])], 1)
        logits = self.llm(inputs_embeds=embedded, use_cache=False).logits[:, -ids.shape[1] :]
        outputs = {"logits": logits}
        if not self.training:
            outputs["written"] = self._write(before, ids.shape[1])
        return outputs

    def _prefixes(self, batch: dict[str, Tensor]) -> list[Tensor]:
        if not self.reads_tokens:
            vectors = self.vectors(batch)
            return [
                self.projector[kind](unit_length(self.aligner[kind](vectors[kind])), None) for kind in self.projector
            ]
        prefixes = []
        if self.image_encoder is not None:
            tokens, _ = self.image_tokens(batch["pixel_values"])
            real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            prefixes.append(self.projector["image"](self.aligner["image"](tokens), real))
        if self.audio_encoder is not None:
            tokens, real = self.audio_tokens(batch["waveform"], batch["num_audio_samples"])
            prefixes.append(self.projector["audio"](self.aligner["audio"](tokens), real))
        return prefixes

    @torch.no_grad()
    def _write(self, before: Tensor, length: int) -> Tensor:
        """Greedy decoding from the embeddings `before` (n, P, W): always `length` steps, so that all ranks take as many."""
        embed = self.llm.get_input_embeddings()
        cache = {cache_argument(self.llm): DynamicCache(config=self.llm.config)}
        ended = torch.zeros(len(before), dtype=torch.bool, device=before.device)
        written, embedded = [], before
        for _ in range(length):
            logits = self.llm(inputs_embeds=embedded, use_cache=True, **cache).logits[:, -1]
            chosen = logits.argmax(1).masked_fill(ended, self.pad_id)
            ended |= chosen == self.end_id
            written.append(chosen)
            embedded = embed(chosen.unsqueeze(1))
        return torch.stack(written, 1)


def cache_argument(decoder: nn.Module) -> str:
    """What the decoder's forward calls the keys and values so far; transformers 5.24 renamed it, and warns."""
    return "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"


def build_decoder(
    section: Backbone, *, vocab_size: int, end_id: int, pad_id: int, attention: str | None, length: int
) -> PreTrainedModel:
    """A causal language model in fp32 that reads `length` positions. Raises UserError.

    Random weights are drawn from torch's global generator.
    """
    if section.pretrained is None:
        for key in FROM_THE_TOKENIZER:
            if key in section.config:
                raise UserError(
                    f"model.llm.config.{key}: {section.config[key]!r} would be ignored; the tokenizer decides it. "
                    "Take it out."
                )
        config = random_architecture(section, "model.llm", None)
        config.vocab_size = vocab_size
        config.pad_token_id, config.eos_token_id, config.bos_token_id = pad_id, end_id, None
    else:
        config = _architecture_of(section.pretrained, vocab_size)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model.llm: transformers has no causal language model of the type {config.model_type}.")
    longest = config.to_dict().get("max_position_embeddings")
    if longest is not None and length > longest:
        raise UserError(f"model.llm reads {longest} positions at most; prefix and caption make {length}.")
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        if section.pretrained is None or building_on_meta():
            decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
        else:
            decoder = load_model(AutoModelForCausalLM, section.pretrained, config, "model.llm.pretrained", **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"model.llm: {config.model_type} can't be built. {error}") from error
    assert isinstance(decoder, PreTrainedModel)
    return decoder


def _architecture_of(folder: str, vocab_size: int) -> PretrainedConfig:
    config = read_config(folder, "model.llm.pretrained")
    if vocab_size > config.vocab_size:
        raise UserError(
            f"data.tokenizer has {vocab_size} tokens, but model.llm.pretrained embeds {config.vocab_size}. Take the model's "
            "own tokenizer."
        )
    return config


def caption_losses(logits: Tensor, ids: Tensor, is_target: Tensor) -> Tensor:
    """Negative log probability of each token (n, L), 0 where it is no target."""
    losses = F.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")
    return losses.masked_fill(is_target == 0, 0.0)
