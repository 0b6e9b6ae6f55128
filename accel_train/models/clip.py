"""CLIP, Chinese-CLIP and SigLIP: the transformers models themselves, called with a batch.

They are subclassed, not wrapped, so parameter names are those of transformers.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    SiglipConfig,
    SiglipModel,
)

from accel_train.config.contrastive import ClipModelSection, ContrastiveConfig
from accel_train.errors import UserError
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.overrides import make_config, merge
from accel_train.models.pretrained import building_on_meta, load_model, read_architecture
from accel_train.models.sizes import SIZES


class _TransformersModel(ContrastiveModel):
    """The two calls that these models of transformers share. Since version 5 the calls return an output object."""

    get_image_features: Callable[..., Any]
    get_text_features: Callable[..., Any]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.get_image_features(pixel_values=pixel_values).pooler_output
        return features

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features: Tensor = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return features

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings. FSDP2 asks for them, and transformers finds none by itself in a model with two towers."""
        text_model: Any = self.get_submodule("text_model")
        embeddings: nn.Module = text_model.get_input_embeddings()
        return embeddings


class ContrastiveChineseCLIP(_TransformersModel, ChineseCLIPModel):
    """Text feature: the first token's, as in the original."""


class ContrastiveCLIP(_TransformersModel, CLIPModel):
    """Text feature: that of the first end-of-text token."""


class ContrastiveSiglip(_TransformersModel, SiglipModel):
    """Text feature: that of the last position, padding or not."""


FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "chinese_clip": (ContrastiveChineseCLIP, ChineseCLIPModel, ChineseCLIPConfig),
    "clip": (ContrastiveCLIP, CLIPModel, CLIPConfig),
    "siglip": (ContrastiveSiglip, SiglipModel, SiglipConfig),
}
"""For each model.type: our class, the plain class of transformers, its configuration."""


def build_clip(config: ContrastiveConfig, section: ClipModelSection) -> ContrastiveModel:
    """A CLIP-like model from a folder or a named size; on the meta device without values."""
    ours, _, _ = FAMILIES[section.type]
    options: dict[str, Any] = {"attn_implementation": section.attention} if section.attention else {}
    if section.pretrained is None:
        architecture = _named_size(config, section)
    else:
        architecture = _architecture_of_folder(section.pretrained, section.type)
    _check_inputs(architecture, config, pretrained=section.pretrained is not None)
    if section.pretrained is None or building_on_meta():
        try:
            model = ours._from_config(architecture, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"model.attention is {section.attention}, which can't be used here. {error}") from error
    else:
        model = load_model(ours, section.pretrained, architecture, "model.pretrained", **options)
    model.set_up(config, random_weights=section.pretrained is None)
    return model


def _named_size(config: ContrastiveConfig, section: ClipModelSection) -> PretrainedConfig:
    sizes = SIZES[section.type]
    if section.size not in sizes:
        raise UserError(f"model.size is {section.size!r}; {section.type} has {', '.join(sizes)}.")
    config_class = FAMILIES[section.type][2]
    settings = merge(sizes[section.size], section.config, config_class(), "model.config")
    settings["vision_config"] = {"image_size": config.data.image_size} | settings["vision_config"]
    return make_config(config_class, settings, "model.config")


def _architecture_of_folder(folder: str, model_type: str) -> PretrainedConfig:
    found = read_architecture(folder, "model.pretrained")["model_type"]
    if found != model_type:
        raise UserError(f"model.pretrained: {folder} holds a {found} model, but model.type is {model_type}.")
    return FAMILIES[model_type][2].from_pretrained(folder, local_files_only=True)


def _check_inputs(architecture: PretrainedConfig, config: ContrastiveConfig, *, pretrained: bool) -> None:
    """Image size and text length against what the model can take."""
    image, text, data = architecture.vision_config, architecture.text_config, config.data
    if image.image_size != data.image_size:
        raise UserError(
            f"data.image_size is {data.image_size}, but the model takes images of {image.image_size} px. "
            f"Set data.image_size={image.image_size}."
        )
    if data.image_size % image.patch_size:
        raise UserError(f"data.image_size is {data.image_size}, not a multiple of the patch size {image.patch_size}.")
    longest = text.max_position_embeddings
    if data.max_text_length > longest:
        raise UserError(
            f"data.max_text_length is {data.max_text_length}, but the model reads {longest} tokens at most."
        )
    if pretrained and architecture.model_type == "siglip" and data.max_text_length != longest:
        raise UserError(
            f"data.max_text_length is {data.max_text_length}, but SigLIP takes a text's feature from its last position "
            f"and was trained with {longest}. Set data.max_text_length={longest}."
        )
