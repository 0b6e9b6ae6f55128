"""An image backbone and a text backbone of transformers, with a projection head each."""

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from accel_train.config.contrastive import Backbone, ContrastiveConfig, DualEncoderSection
from accel_train.errors import UserError
from accel_train.models.contrastive_model import ContrastiveModel, Encoded
from accel_train.models.overrides import make_config, merge
from accel_train.models.pretrained import TASK_HEADS, building_on_meta, load_model, read_config

ANY_IMAGE_SIZE = ("convnext", "convnextv2", "resnet", "dinov2", "dinov2_with_registers", "swin", "swinv2")
"""Architectures that take every image size: convolutions, or position embeddings that are interpolated."""


class TextPooling(nn.Module):
    """Makes one vector of the text tokens. `attention`: a softmax over the tokens of their product with a learnt query."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.empty(1, width))
            nn.init.normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """tokens (n, L, D), attention_mask (n, L) with 1 for tokens that count, to (n, D)."""
        if self.kind == "cls":
            return tokens[:, 0]
        real = attention_mask.bool()
        if self.kind == "mean":
            weights = real.to(tokens.dtype) / real.sum(1, keepdim=True)
        else:
            scores = (tokens @ self.query.T).squeeze(-1) / math.sqrt(tokens.shape[-1])
            weights = scores.masked_fill(~real, float("-inf")).softmax(-1).to(tokens.dtype)
        return (weights.unsqueeze(1) @ tokens).squeeze(1)


class DualEncoder(ContrastiveModel):
    """Parameters: vision_model.*, text_model.* (the backbones' own names), text_pooling.*, *_projection, logit_scale."""

    def __init__(
        self, vision_model: PreTrainedModel, text_model: PreTrainedModel, pooling: str, projection_dim: int
    ) -> None:
        super().__init__()
        self.vision_model, self.text_model = vision_model, text_model
        image_width, text_width = (output_width(backbone.config) for backbone in (vision_model, text_model))
        self.text_pooling = TextPooling(pooling, text_width)
        self.visual_projection = nn.Linear(image_width, projection_dim, bias=False)
        self.text_projection = nn.Linear(text_width, projection_dim, bias=False)
        for projection in (self.visual_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    @property
    def feature_width(self) -> int:
        return self.visual_projection.out_features

    def encode_images(self, pixel_values: Tensor, *, with_layers: bool = False) -> Encoded:
        output = self.vision_model(pixel_values=pixel_values, **({"output_hidden_states": True} if with_layers else {}))
        hidden: Tensor = output.last_hidden_state
        pooled: Tensor | None = output.pooler_output
        vector = hidden[:, 0] if pooled is None else pooled.flatten(1)
        # Convolutional backbones give (n, W, height, width).
        tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        return Encoded(self.visual_projection(vector), tokens, output.hidden_states or ())

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        tokens: Tensor = output.last_hidden_state
        pooled = self.text_pooling.kind == "pooler"
        vector = output.pooler_output if pooled else self.text_pooling(tokens, attention_mask)
        return Encoded(self.text_projection(vector), tokens)


def build_dual_encoder(config: ContrastiveConfig, section: DualEncoderSection) -> DualEncoder:
    """Both backbones, from folders or with random weights, under fresh projection heads."""
    size = config.data.image_size
    image = build_backbone(section.image, "model.image", "num_channels", section.attention, size, keep_pooler=False)
    keep_pooler = section.text_pooling == "pooler"
    text = build_backbone(section.text, "model.text", "vocab_size", section.attention, None, keep_pooler=keep_pooler)
    if keep_pooler and "pooler" not in dict(text.named_children()):
        raise UserError(f"model.text_pooling is pooler, but {text.config.model_type} has none. Use attention or cls.")
    longest = architecture_value(text.config, "max_position_embeddings")
    if longest is not None and config.data.max_text_length > longest:
        raise UserError(
            f"data.max_text_length is {config.data.max_text_length}, but model.text reads {longest} tokens at most."
        )
    model = DualEncoder(image, text, section.text_pooling, section.projection_dim)
    model.set_up(config, random_weights=True)
    return model


def architecture_value(config: PretrainedConfig, name: str) -> Any:
    """A value of a configuration that not every architecture has; None where it lacks."""
    return config.to_dict().get(name)


def build_backbone(
    backbone: Backbone, where: str, needs: str, attention: str | None, image_size: int | None, *, keep_pooler: bool
) -> PreTrainedModel:
    """A backbone of transformers in fp32, without parts that the forward pass would never use. Raises UserError.

    `needs` is what its configuration must know: num_channels of images, vocab_size of texts.
    """
    if backbone.pretrained is None:
        config = random_architecture(backbone, where, image_size)
    else:
        config = read_config(backbone.pretrained, f"{where}.pretrained")
    if needs not in config.to_dict():
        kind = "an image" if needs == "num_channels" else "a text"
        raise UserError(f"{where}: {config.model_type} is not {kind} model.")
    if image_size is not None:
        _check_image_size(config, image_size, where)
    # Convolutional backbones have no attention and refuse the option.
    has_attention = "num_attention_heads" in config.to_dict()
    options: dict[str, Any] = {"attn_implementation": attention} if attention and has_attention else {}
    if backbone.pretrained is None or building_on_meta():
        try:
            model = AutoModel.from_config(config, dtype=torch.float32, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"{where}: {config.model_type} can't be built. {error}") from error
    else:
        ignore = TASK_HEADS if keep_pooler else (*TASK_HEADS, "pooler.")
        model = load_model(AutoModel, backbone.pretrained, config, f"{where}.pretrained", ignore=ignore, **options)
    drop_unused(model, keep_pooler=keep_pooler)
    return model


def drop_unused(model: PreTrainedModel, *, keep_pooler: bool) -> None:
    """Removes parameters that the forward pass would never use: DDP and ZeRO need a gradient for every one."""
    pooler = dict(model.named_children()).get("pooler")
    if pooler is not None and not keep_pooler and list(pooler.parameters()):
        model.pooler = None
    for module in list(model.modules()):
        if "mask_token" in dict(module.named_parameters(recurse=False)):
            module.mask_token = None
            model.config.use_mask_token = False


def random_architecture(backbone: Backbone, where: str, image_size: int | None) -> PretrainedConfig:
    """The configuration of a transformers model type with the section's values. Raises UserError."""
    name = backbone.architecture
    if name not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(str(name), list(CONFIG_MAPPING), n=1)
        hint = f" Nearest: {nearest[0]}." if nearest else ""
        raise UserError(f"{where}.architecture: transformers knows no {name!r}.{hint}")
    known = AutoConfig.for_model(name)
    settings: dict[str, Any] = {}
    if image_size is not None and "image_size" in known.to_dict():
        settings["image_size"] = image_size
    return make_config(type(known), merge(settings, backbone.config, known, f"{where}.config"), f"{where}.config")


def _check_image_size(config: PretrainedConfig, image_size: int, where: str) -> None:
    made_for = architecture_value(config, "image_size")
    if config.model_type in ANY_IMAGE_SIZE or made_for is None:
        return
    if made_for != image_size:
        raise UserError(
            f"data.image_size is {image_size}, but {where} takes images of {made_for} px. Set data.image_size={made_for}."
        )
    patch = architecture_value(config, "patch_size")
    if isinstance(patch, int) and image_size % patch:
        raise UserError(f"data.image_size is {image_size}, not a multiple of the patch size {patch} of {where}.")


def output_width(config: PretrainedConfig) -> int:
    """Length of a backbone's output vector."""
    sizes = architecture_value(config, "hidden_sizes")
    return int(sizes[-1] if sizes else config.hidden_size)
