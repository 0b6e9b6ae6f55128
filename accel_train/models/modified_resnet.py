"""CLIP's ResNet: the image tower of Chinese-CLIP's RN50.

After Radford et al. 2021, section 2.4: a stem of three convolutions, average pooling before every strided convolution
(Zhang 2019, arXiv:1904.11486), and a last layer in which the mean of the grid attends to the grid.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

EXPANSION = 4
"""Channels that leave a block, over those of its 3 x 3 convolution."""

REDUCTION = 32
"""Pixels to one place of the last grid, each way."""


@strict
class ModifiedResNetConfig(PretrainedConfig):
    model_type = "clip_resnet_vision_model"
    base_config_key = "vision_config"

    width: int = 64
    """Channels after the stem; the last grid has 32 times as many."""
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    image_size: int = 224
    num_attention_heads: int = 32
    """Heads of the last layer: 64 channels each, as in the original."""
    patch_size: int = REDUCTION
    """What image_size must be a multiple of."""

    def validate_architecture(self) -> None:
        if len(self.depths) != 4 or self.width % 2 or self.patch_size != REDUCTION:
            raise ValueError(
                f"depths must have four numbers, width must be even, and patch_size is always {REDUCTION}."
            )
        if self.width * REDUCTION % self.num_attention_heads:
            raise ValueError(
                f"{self.width * REDUCTION} channels are not a multiple of {self.num_attention_heads} heads."
            )


def fill_resnet_heads(section: dict[str, Any]) -> None:
    """Sets num_attention_heads of a vision_config by the original's rule, where nobody said it: 64 channels each."""
    section.setdefault("num_attention_heads", max(1, section["width"] * REDUCTION // 64))


class Shortcut(nn.Module):
    """The input of a block at the size of its output."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(_pooled(images, self.stride)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; a stride is an average pooling after the second."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * EXPANSION, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels * EXPANSION)
        changes = stride > 1 or channels_in != channels * EXPANSION
        self.shortcut = Shortcut(channels_in, channels * EXPANSION, stride) if changes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(images)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        hidden = self.norm3(self.conv3(_pooled(hidden, self.stride)))
        return F.relu(hidden + self.shortcut(images))


class Stem(nn.Module):
    """(n, 3, S, S) to (n, width, S/4, S/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(pixel_values)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        return _pooled(F.relu(self.norm3(self.conv3(hidden))), 2)


class Stage(nn.Module):
    """Blocks of one width; the first one halves the grid in all stages but the first."""

    def __init__(self, channels_in: int, channels: int, depth: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Bottleneck(channels * EXPANSION if number else channels_in, channels, 1 if number else stride)
            for number in range(depth)
        )

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images)
        return images


class AttentionPool(nn.Module):
    """Multi-head attention whose only query is the mean of the grid: (n, C, H, W) to (n, D)."""

    def __init__(self, positions: int, channels: int, heads: int, projection_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.position_embedding = nn.Parameter(torch.randn(positions, channels) / math.sqrt(channels))
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, projection_dim)

    def forward(self, images: Tensor) -> Tensor:
        grid = images.flatten(2).transpose(1, 2)
        tokens = torch.cat([grid.mean(1, keepdim=True), grid], 1) + self.position_embedding.to(grid.dtype)
        query, key, value = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(pooled.flatten(1))


class ModifiedResNet(nn.Module):
    """(n, 3, S, S) to features (n, projection_dim), projected by the attention pooling, and the grid before it as tokens."""

    def __init__(self, config: ModifiedResNetConfig, projection_dim: int) -> None:
        super().__init__()
        width = config.width
        self.stem = Stem(width)
        self.stages = nn.ModuleList(
            Stage(
                channels_in=width * EXPANSION * 2 ** (stage - 1) if stage else width,
                channels=width * 2**stage,
                depth=depth,
                stride=2 if stage else 1,
            )
            for stage, depth in enumerate(config.depths)
        )
        positions = (config.image_size // REDUCTION) ** 2 + 1
        self.pool = AttentionPool(positions, width * REDUCTION, config.num_attention_heads, projection_dim)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.stem(pixel_values.to(self.stem.conv1.weight.dtype))
        for stage in self.stages:
            hidden = stage(hidden)
        tokens = hidden.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.pool(hidden))


def _pooled(images: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(images, stride) if stride > 1 else images
