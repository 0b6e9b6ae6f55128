"""Keys of the task `scorer`: quality of an image, and how well it fits its prompt, on top of a CLIP-like model."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from accel_train.config.contrastive import (
    Augmentation,
    ClipModelSection,
    ContrastiveConfig,
    DualEncoderSection,
    LossSection,
    PairData,
    model_rules,
)
from accel_train.config.inputs import CropAndFlip, ImageInput, TextInput, crop_rules
from accel_train.config.schema import DataSection, RunConfig, Section, changed_keys

Weight = Annotated[float, Field(ge=0)]


class ResidualSection(Section):
    """Scores are an affine map of CLIP's similarity plus a learnt correction; the correction starts as nothing."""

    scale_quality: Annotated[float, Field(gt=0)] = 0.2
    """Factor of the correction of quality: how fast it may leave the map. 0.1 for less than 500 samples, 0.2 up to 3,000,
    0.3 up to 10,000, 0.4 to 0.5 above."""
    scale_consistency: Annotated[float, Field(gt=0)] = 0.2
    """The same for consistency."""


class RefinementSection(Section):
    """A Transformer over the last tokens of both towers, which gives the scores by itself."""

    num_layers: Annotated[int, Field(ge=1)] = 4
    num_heads: Annotated[int, Field(ge=1)] = 8
    width: Annotated[int, Field(ge=1)] = 256


class ScorerModel(Section):
    clip: ClipModelSection | DualEncoderSection = Field(discriminator="type")
    """The CLIP-like model, as `model:` of the task contrastive. Its parameters keep their names behind `clip.`."""
    residual: ResidualSection | None = ResidualSection()
    """At most one of `residual` and `refinement`. Neither: both scores are CLIP's similarity, (1 + cosine) / 2."""
    refinement: RefinementSection | None = None
    quality_layers: Annotated[int, Field(ge=0)] = 0
    """How many layers of the image tower, from the input and with its embeddings as one, the quality head of `residual`
    reads beside CLIP's image features. It reads how their channels are spread over the image: sharpness and noise show in
    low layers, and features made for retrieval hardly hold them."""
    hidden_quality: Annotated[int, Field(ge=1)] = 128
    """Width of the hidden layer before the quality score."""
    hidden_consistency: Annotated[int, Field(ge=1)] = 256
    """Width of the hidden layer before the consistency score."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """In the heads and the refinement. CLIP has its own."""


class RatedData(DataSection, ImageInput, TextInput):
    """Images with a prompt, ratings of quality and consistency, and maybe an explanation."""

    augmentation: CropAndFlip = CropAndFlip()
    """A crop is scaled to image_size, and scaling blurs: leave it out where sharpness and noise are what is rated."""


class ScorerLoss(Section):
    name: Literal["mse", "smooth_l1"] = "mse"
    """Loss of both scores on the scale from 0 to 1. smooth_l1: squared below `smooth_l1_beta`, linear above."""
    smooth_l1_beta: Annotated[float, Field(gt=0)] = 0.1
    """For smooth_l1."""
    quality_weight: Weight = 0.5
    consistency_weight: Weight = 0.5
    explanation_weight: Weight = 0.1
    """Weight of the contrastive loss between (image, prompt) and explanation. 0 where the data has no explanations."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """e pulls every rating to the mean rating of the training split: (1 - e) x rating + e x mean."""


class ScorerConfig(RunConfig):
    """Image quality and text-image consistency from a CLIP-like model."""

    task: Literal["scorer"]
    model: ScorerModel
    data: RatedData
    loss: ScorerLoss = ScorerLoss()

    def contradictions(self) -> Iterator[str]:
        yield from model_rules(self.model.clip, "model.clip.")
        yield from crop_rules(self.data.augmentation)
        yield from _heads(self.model)
        yield from _loss(self.loss)
        if not self.data.tokenizer.strip():
            yield f"data.tokenizer: found {self.data.tokenizer!r}; it must not be empty."

    def clip_config(self) -> ContrastiveConfig:
        """The same run as one of its CLIP alone: what builds, loads and exports that part.

        The temperature is held fixed unless the explanation term uses it, so that no parameter is without a gradient.
        """
        clip = self.model.clip
        if self.loss.explanation_weight == 0:
            clip = clip.model_copy(update={"learn_temperature": False})
        shared = {name: value for name, value in self.data if name in PairData.model_fields and name != "augmentation"}
        return ContrastiveConfig(
            run_dir=self.run_dir,
            seed=self.seed,
            model=clip,
            data=PairData(**shared, augmentation=Augmentation()),
            loss=LossSection(),
            optimizer=self.optimizer,
        )


def _heads(model: ScorerModel) -> Iterator[str]:
    refinement = model.refinement
    if model.residual is not None and refinement is not None:
        yield (
            "model.refinement: it gives the scores by itself, and model.residual corrects CLIP's similarity; both at once "
            "contradict each other. Set one of them to null."
        )
    if refinement is not None and refinement.width % refinement.num_heads:
        yield (
            f"model.refinement.width: {refinement.width} is not a multiple of model.refinement.num_heads "
            f"({refinement.num_heads}). Change one of the two."
        )
    if model.residual is None and model.quality_layers > 0:
        yield f"model.quality_layers: {model.quality_layers} would be ignored, since model.residual is null."
    if model.residual is None and refinement is None:
        for key in changed_keys(model, "hidden_quality", "hidden_consistency", "dropout"):
            yield (
                f"model.{key}: {getattr(model, key)} would be ignored, since model.residual and model.refinement are null."
            )


def _loss(loss: ScorerLoss) -> Iterator[str]:
    if loss.quality_weight == 0 and loss.consistency_weight == 0:
        yield "loss.quality_weight: quality_weight and consistency_weight are 0, so no score would be learnt. Raise one."
    if loss.name != "smooth_l1" and changed_keys(loss, "smooth_l1_beta"):
        yield f"loss.smooth_l1_beta: {loss.smooth_l1_beta} would be ignored, since loss.name is {loss.name}."
