"""Keys of the task `contrastive`: an image tower and a text tower, compared over the whole batch."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from accel_train.config.inputs import CropAndFlip, ImageInput, PaddedText, TextInput, crop_rules
from accel_train.config.schema import DataSection, RunConfig, Section, Share, exactly_one

CHECKPOINT_FILES = (".pt", ".pth", ".bin", ".safetensors")


class Backbone(Section):
    """One tower of a dual encoder: any vision or BERT-like text model of transformers."""

    pretrained: str | None = None
    """A Hugging Face folder with weights. Exactly one of `pretrained` and `architecture`."""
    architecture: str | None = None
    """A transformers model type (vit, convnext, resnet, dinov2, bert) with random weights."""
    config: dict[str, Any] = {}
    """Values of the architecture's own configuration, for example `num_hidden_layers: 2`. Only with `architecture`."""


class ModelSection(Section):
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None
    """Attention implementation. Left out: the model's own default (sdpa where it has one)."""
    batch_norm: Literal["refuse", "frozen", "local", "sync"] = "refuse"
    """What to do with BatchNorm layers that would train. Their batch statistics depend on how a batch is split, so the
    default refuses them. `frozen` keeps the running statistics in eval mode. `local` trains on statistics of each
    micro-batch of each rank, `sync` on those of one micro-batch of all ranks together; both give up split invariance."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the image patches that training drops at random (FLIP, arXiv:2212.00794). Image towers with patches only."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature at the start; logit_scale is the log of its inverse. Left out: what the weights or model hold (0.07 for
    random weights)."""
    learn_temperature: bool = True
    """False freezes logit_scale (and logit_bias) at the start value."""
    max_logit_scale: Annotated[float, Field(gt=0)] | None = 100.0
    """logit_scale is clamped to at most this, where it is used and after each step; the gradient passes through. null: no
    clamp."""


class ClipModelSection(ModelSection):
    """A CLIP-like model of transformers, both towers in one checkpoint."""

    type: Literal["chinese_clip", "clip", "siglip"]
    pretrained: str | None = None
    """A Hugging Face folder with weights, or a checkpoint file of Chinese-CLIP or open_clip. Exactly one of `pretrained`
    and `size`."""
    size: str | None = None
    """A named size with random weights, for example `vit_b_16`; `tiny` for tests."""
    vision_pretrained: str | None = None
    """Weights of the image tower alone, from a folder or a checkpoint file. Only with `size`."""
    text_pretrained: str | None = None
    """Weights of the text tower alone, for example of a BERT folder. Only with `size`."""
    config: dict[str, Any] = {}
    """Changes to the named size's configuration, for example `text_config: {vocab_size: 500}`, or what a checkpoint file
    can't tell, such as the number of heads. Not beside a folder, which holds its own."""


class DualEncoderSection(ModelSection):
    """An image backbone and a text backbone with a projection head each."""

    type: Literal["dual_encoder"]
    image: Backbone
    text: Backbone
    projection_dim: Annotated[int, Field(ge=1)] = 512
    """Width of image_features and text_features."""
    text_pooling: Literal["attention", "pooler", "cls", "mean"] = "attention"
    """How text tokens become one vector: learnt attention over the tokens, BERT's pooler, the first token, the mean."""


class Augmentation(CropAndFlip):
    """Training-time augmentation; each draw is a function of (seed, epoch, sample)."""

    auto_augment: bool = False
    """AutoAugment's policy for ImageNet (arXiv:1805.09501), after crop and flip."""
    mask_tokens: Share = 0.0
    """Probability for each text token to be replaced by the tokenizer's mask token."""


class PairData(DataSection, ImageInput, TextInput, PaddedText):
    """Images with captions."""

    augmentation: Augmentation = Augmentation()
    sort_by_length: bool = False
    """Captions of like length share a micro-batch: less padding. Each global batch holds the same samples, so its loss is
    the same."""


class LossSection(Section):
    name: Literal["info_nce", "sigmoid"] = "info_nce"
    positives: Literal["shared", "own"] = "shared"
    """`shared`: rows with the same image or the same caption are positives of each other. `own`: each row has itself
    alone as a positive (the plain form, as in CLIP)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    chunk_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of the similarity matrix that are held at once. Left out: 256, or a fused kernel for InfoNCE of a large batch on
    CUDA (run.log says which)."""


class DistillationSection(Section):
    """A frozen teacher whose features guide the student's."""

    teacher: str | None = None
    """A Hugging Face folder, an export, or a checkpoint file. Exactly one of `teacher` and `features`."""
    features: str | None = None
    """The teacher's features of the training split, as `accel-train embed` stored them."""
    guides: list[Literal["image_features", "text_features", "similarity"]] = Field(["image_features"], min_length=1)
    """What the student imitates. `similarity` is the matrix between all images and all texts of the global batch."""
    weight: Annotated[float, Field(gt=0)] = 0.5
    """Factor of the distillation loss beside the contrastive one."""


class ContrastiveConfig(RunConfig):
    """Contrastive training of an image tower and a text tower."""

    task: Literal["contrastive"] = "contrastive"
    model: ClipModelSection | DualEncoderSection = Field(discriminator="type")
    data: PairData
    loss: LossSection = LossSection()
    distillation: DistillationSection | None = None

    def contradictions(self) -> Iterator[str]:
        yield from model_rules(self.model)
        yield from crop_rules(self.data.augmentation)
        if not self.data.tokenizer.strip():
            yield f"data.tokenizer: found {self.data.tokenizer!r}; it must not be empty."
        if self.distillation is not None:
            yield from exactly_one("distillation.", self.distillation, "teacher", "features")
            guides = self.distillation.guides
            for guide in sorted({guide for guide in guides if guides.count(guide) > 1}):
                yield f"distillation.guides: {guide} stands there {guides.count(guide)} times; name it once."


def model_rules(model: ClipModelSection | DualEncoderSection, where: str = "model.") -> Iterator[str]:
    """Contradictions within a model section; `where` is its path with a dot at its end."""
    if isinstance(model, ClipModelSection):
        yield from _weights(where, model, "size")
        for key in ("vision_pretrained", "text_pretrained"):
            if getattr(model, key) is not None and model.pretrained is not None:
                yield (
                    f"{where}{key}: {getattr(model, key)!r} contradicts {where}pretrained ({model.pretrained!r}), which "
                    "holds both towers. Take one of them out."
                )
    else:
        yield from _weights(f"{where}image.", model.image, "architecture")
        yield from _weights(f"{where}text.", model.text, "architecture")
    if model.temperature and model.max_logit_scale and 1 / model.temperature > model.max_logit_scale * (1 + 1e-6):
        yield (
            f"{where}temperature: {model.temperature:g} starts logit_scale at {1 / model.temperature:g}, above "
            f"{where}max_logit_scale ({model.max_logit_scale:g}). Raise one of the two."
        )


def is_checkpoint_file(source: str) -> bool:
    """Whether weights come from a single file, which says nothing of the architecture beyond its shapes."""
    return source.endswith(CHECKPOINT_FILES)


def _weights(where: str, section: ClipModelSection | Backbone, from_scratch: str) -> Iterator[str]:
    yield from exactly_one(where, section, "pretrained", from_scratch)
    source = section.pretrained
    if (
        section.config
        and source is not None
        and not (isinstance(section, ClipModelSection) and is_checkpoint_file(source))
    ):
        yield (
            f"{where}config: {section.config!r} would be ignored beside {where}pretrained ({source!r}), "
            f"whose folder holds its own. Take it out, or use {from_scratch}."
        )
