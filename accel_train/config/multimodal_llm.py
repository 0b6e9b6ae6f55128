"""Keys of the task `multimodal_llm`: a decoder that captions what aligned encoders see and hear."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from accel_train.config.contrastive import Backbone
from accel_train.config.inputs import crop_rules
from accel_train.config.multimodal import (
    AlignerSection,
    AudioSection,
    SpokenImageData,
    backbone_rules,
    features_rules,
    tokenizer_rule,
)
from accel_train.config.schema import RunConfig, Section


class ProjectorSection(Section):
    """What turns a modality's aligned features into input embeddings of the decoder; one for each modality."""

    reads: Literal["features", "tokens"] = "features"
    """`features`: the one aligned vector. `tokens`: the encoder's tokens, each through the aligner, averaged into as many
    stretches as the prefix is long."""
    num_tokens: Annotated[int, Field(ge=1)] = 8
    """Length of each modality's prefix."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Width of a hidden layer. null: a linear map."""


class LoraSection(Section):
    """Low-rank adapters in the decoder (Hu et al. 2021, arXiv:2106.09685), through peft."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    """The adapters' output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the adapters."""
    target_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1)
    """Names of the linear layers that get one."""


class MultimodalLlmModel(Section):
    image: Backbone | None = None
    """As in phase 1. null: the decoder sees no images."""
    audio: AudioSection | None = None
    """As in phase 1. null: the decoder hears nothing. Without image and audio it is a plain language model."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None
    """Attention implementation. Left out: the models' own default (sdpa where they have one)."""
    aligner: AlignerSection | None = None
    """As in phase 1, whose weights `initialize_from` brings."""
    projector: ProjectorSection | None = None
    llm: Backbone
    """A causal language model of transformers: LLaMA and its kin. For `architecture`, vocab_size and the special tokens
    come from the tokenizer."""
    lora: LoraSection | None = None
    """Left out: no adapters."""


class CaptionData(SpokenImageData):
    """Images and recordings with the caption that the decoder learns to write."""

    end_token: str | None = None
    """The token that ends a caption. Left out: the one that the tokenizer itself puts at the end of a text."""


class CaptionLoss(Section):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of the target is spread evenly over all tokens."""


class MultimodalLlmConfig(RunConfig):
    """Captioning by a language model."""

    task: Literal["multimodal_llm"]
    model: MultimodalLlmModel
    data: CaptionData
    loss: CaptionLoss = CaptionLoss()

    def contradictions(self) -> Iterator[str]:
        model = self.model
        for name, section in (("image", model.image), ("audio", model.audio), ("llm", model.llm)):
            yield from backbone_rules(f"model.{name}.", section)
        has_inputs = model.image is not None or model.audio is not None
        for name in ("aligner", "projector"):
            given = vars(model)[name] is not None
            if given and not has_inputs:
                yield f"model.{name}: it would be ignored, since model.image and model.audio are null. Take it out."
            elif has_inputs and not given:
                yield f"model.{name}: missing; an image or audio encoder needs it. Give it, if only as {{}}."
        if model.lora is not None and model.lora.dropout > 0 and self.dropout == "per_sample":
            yield (
                f"model.lora.dropout: {model.lora.dropout:g} contradicts dropout: per_sample, which can't key the dropout "
                "inside peft's layers. Set one of them to 0 or fast."
            )
        yield from crop_rules(self.data.augmentation)
        yield from tokenizer_rule(self.data)
        yield from features_rules(self.data)
        if self.data.features is not None and not has_inputs:
            yield "data.features: it would be ignored, since model.image and model.audio are null. Take it out."
        if self.data.features is not None and model.projector is not None and model.projector.reads == "tokens":
            yield (
                "data.features: only one vector of each image and recording is stored, but model.projector.reads is tokens. "
                "Set it to features, or data.features to null."
            )
