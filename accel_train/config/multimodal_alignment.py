"""Keys of the task `multimodal_alignment`: images, speech and captions in one space. Phase 1 of `multimodal_llm`."""

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


class AlignmentModel(Section):
    image: Backbone
    """Any vision model of transformers."""
    audio: AudioSection
    text: Backbone
    """Any BERT-like model of transformers."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None
    """Attention implementation of image and text. Left out: the models' own default (sdpa where they have one)."""
    aligner: AlignerSection = AlignerSection()
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature at the start, one for all three pairs of modalities."""
    learn_temperature: bool = True
    """False holds it at the start value."""
    max_logit_scale: Annotated[float, Field(gt=0)] | None = 100.0
    """1 / temperature is clamped to at most this where it is used; the gradient passes through. null: no clamp."""


class AlignmentLoss(Section):
    positives: Literal["shared", "own"] = "shared"
    """`shared`: rows with the same image, recording or caption are positives of each other. `own`: each row alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    chunk_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of a similarity matrix that are held at once. Left out: 256, or a fused kernel for a large batch on CUDA (run.log
    says which)."""


class MultimodalAlignmentConfig(RunConfig):
    """Contrastive training across three pairs of modalities."""

    task: Literal["multimodal_alignment"]
    model: AlignmentModel
    data: SpokenImageData
    loss: AlignmentLoss = AlignmentLoss()

    def contradictions(self) -> Iterator[str]:
        model = self.model
        for name, section in (("image", model.image), ("audio", model.audio), ("text", model.text)):
            yield from backbone_rules(f"model.{name}.", section)
        yield from crop_rules(self.data.augmentation)
        yield from tokenizer_rule(self.data)
        yield from features_rules(self.data)
        if model.max_logit_scale and 1 / model.temperature > model.max_logit_scale * (1 + 1e-6):
            yield (
                f"model.temperature: {model.temperature:g} starts logit_scale at {1 / model.temperature:g}, above "
                f"model.max_logit_scale ({model.max_logit_scale:g}). Raise one of the two."
            )
