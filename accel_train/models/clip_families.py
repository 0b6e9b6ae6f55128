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
    SiglipConfig,
    SiglipModel,
)

from accel_train.models.chinese_clip_resnet import ChineseCLIPResNetConfig, ChineseCLIPResNetModel
from accel_train.models.contrastive_model import ContrastiveModel, Encoded


class _TransformersModel(ContrastiveModel):
    """The two calls that these models of transformers share. Since version 5 the calls return an output object."""

    get_image_features: Callable[..., Any]
    get_text_features: Callable[..., Any]

    @property
    def feature_width(self) -> int:
        architecture: Any = self.config
        return int(architecture.projection_dim)

    def encode_images(self, pixel_values: Tensor, *, with_layers: bool = False) -> Encoded:
        asked = {"output_hidden_states": True} if with_layers else {}
        output = self.get_image_features(pixel_values=pixel_values, **asked)
        return Encoded(output.pooler_output, output.last_hidden_state, output.hidden_states or ())

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        output = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return Encoded(output.pooler_output, output.last_hidden_state)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings. FSDP2 asks for them, and transformers finds none by itself in a model with two towers."""
        text_model: Any = self.get_submodule("text_model")
        embeddings: nn.Module = text_model.get_input_embeddings()
        return embeddings


class ContrastiveChineseCLIP(_TransformersModel, ChineseCLIPModel):
    """Text feature: the first token's, as in the original."""


class ContrastiveChineseCLIPResNet(_TransformersModel, ChineseCLIPResNetModel):
    """Chinese-CLIP's RN50."""


class ContrastiveCLIP(_TransformersModel, CLIPModel):
    """Text feature: that of the first end-of-text token."""


class ContrastiveSiglip(_TransformersModel, SiglipModel):
    """Text feature: that of the last position, padding or not."""

    @property
    def feature_width(self) -> int:
        architecture: Any = self.config
        return int(architecture.text_config.projection_size)


FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "chinese_clip": (ContrastiveChineseCLIP, ChineseCLIPModel, ChineseCLIPConfig),
    "chinese_clip_resnet": (ContrastiveChineseCLIPResNet, ChineseCLIPResNetModel, ChineseCLIPResNetConfig),
    "clip": (ContrastiveCLIP, CLIPModel, CLIPConfig),
    "siglip": (ContrastiveSiglip, SiglipModel, SiglipConfig),
}
"""For each architecture: our class, the plain class of transformers, its configuration."""

ARCHITECTURES = {"chinese_clip": ("chinese_clip", "chinese_clip_resnet"), "clip": ("clip",), "siglip": ("siglip",)}
"""The architectures of each model.type."""
