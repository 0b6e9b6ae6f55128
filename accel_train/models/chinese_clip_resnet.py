"""Chinese-CLIP with CLIP's ResNet as its image tower, written like a model of transformers, which has no such class.

So it is built, saved and loaded by the same calls as the other CLIP-like models; only AutoModel doesn't know it.
"""

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import ChineseCLIPTextConfig, ChineseCLIPTextModel, PretrainedConfig, PreTrainedModel
from transformers.initialization import kaiming_uniform_, normal_, zeros_
from transformers.modeling_outputs import BaseModelOutputWithPooling

from accel_train.models.modified_resnet import AttentionPool, Bottleneck, ModifiedResNet, ModifiedResNetConfig


@strict
class ChineseCLIPResNetConfig(PretrainedConfig):
    model_type = "chinese_clip_resnet"
    sub_configs = {"vision_config": ModifiedResNetConfig, "text_config": ChineseCLIPTextConfig}

    text_config: dict[str, Any] | ChineseCLIPTextConfig | None = None
    vision_config: dict[str, Any] | ModifiedResNetConfig | None = None
    projection_dim: int = 1024
    logit_scale_init_value: float = 2.6592

    def __post_init__(self, **kwargs: Any) -> None:
        for name, kind in self.sub_configs.items():
            found = vars(self)[name]
            if not isinstance(found, kind):
                setattr(self, name, kind(**(found or {})))
        super().__post_init__(**kwargs)


class ChineseCLIPResNetModel(PreTrainedModel):
    """Both towers under the names that ChineseCLIPModel gives them; the ResNet projects by itself."""

    logit_scale: Tensor
    config_class = ChineseCLIPResNetConfig
    base_model_prefix = "chinese_clip_resnet"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ChineseCLIPResNetConfig) -> None:
        super().__init__(config)
        assert isinstance(config.vision_config, ModifiedResNetConfig)
        assert isinstance(config.text_config, ChineseCLIPTextConfig)
        self.text_model = ChineseCLIPTextModel(config.text_config, add_pooling_layer=False)
        self.vision_model = ModifiedResNet(config.vision_config, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        output: BaseModelOutputWithPooling = self.vision_model(pixel_values)
        return output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        output.pooler_output = self.text_projection(output.last_hidden_state[:, 0])
        return output

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original's start: torch's own for convolutions, blocks that begin as their shortcut."""
        if isinstance(module, nn.Conv2d):
            kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, AttentionPool):
            std = module.q_proj.in_features**-0.5
            for layer in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                normal_(layer.weight, std=std)
            normal_(module.position_embedding, std=std)
        elif isinstance(module, ChineseCLIPResNetModel):
            normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5)
            # Not at the blocks themselves: outside its own package, transformers passes over modules without parameters.
            for block in module.vision_model.modules():
                if isinstance(block, Bottleneck):
                    zeros_(block.norm3.weight)
        else:
            super()._init_weights(module)
