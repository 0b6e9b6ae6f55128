"""FLIP: training sees a random part of each image's patches (Li et al. 2022, arXiv:2212.00794)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from accel_train.errors import UserError
from accel_train.models.dropout import per_sample_bits

CLASS_TOKENS = {
    "chinese_clip_vision_model": 1,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
}
"""Tokens that stand before the patches, for the image towers whose patches all pass through every block."""


class PatchDropout(nn.Module):
    """Keeps each image's first tokens and max(1, int(patches x (1 - ratio))) of its patches, other ones for each image.

    Under per-sample dropout the choice is a function of (key, sample), else it comes from torch's generator.
    """

    def __init__(self, ratio: float, num_class_tokens: int) -> None:
        super().__init__()
        self.ratio, self.num_class_tokens = ratio, num_class_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, D) to (n, fewer tokens, D), in the same order, in train mode; in eval mode as they are."""
        if not self.training:
            return tokens
        first, patches = tokens[:, : self.num_class_tokens], tokens[:, self.num_class_tokens :]
        num = patches.shape[1]
        keys = per_sample_bits(num, tokens.device)
        if keys is None:
            keys = torch.rand(len(tokens), num, device=tokens.device)
        if len(keys) != len(tokens):
            raise RuntimeError(f"patch dropout got {len(tokens)} rows for {len(keys)} samples.")
        kept = keys.argsort(dim=1, stable=True)[:, : max(1, int(num * (1 - self.ratio)))].sort(1).values
        return torch.cat([first, patches.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))], 1)

    def after_embeddings(self, embeddings: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """A forward hook for the embeddings: their output has the position embeddings added."""
        kept: Tensor = self(tokens)
        return kept


def drop_patches(model: nn.Module, ratio: float) -> None:
    """Puts a PatchDropout behind the embeddings of a model's image tower. Raises UserError for a tower without patches.

    It belongs to the tower, not to the embeddings: frozen embeddings are in eval mode, and the blocks after them may train.
    """
    tower: Any = model.get_submodule("vision_model")
    config = vars(tower).get("config")
    kind = config.model_type if isinstance(config, PretrainedConfig) else type(tower).__name__
    if not isinstance(config, PretrainedConfig) or kind not in CLASS_TOKENS:
        raise UserError(
            f"model.mask_ratio is {ratio:g}, but the image tower is a {kind}, whose patches can't be left out. Set it to 0, "
            f"or use one of {', '.join(CLASS_TOKENS)}."
        )
    num_class_tokens = CLASS_TOKENS[kind] + config.to_dict().get("num_register_tokens", 0)
    tower.patch_dropout = PatchDropout(ratio, num_class_tokens)
    tower.embeddings.register_forward_hook(tower.patch_dropout.after_embeddings)
