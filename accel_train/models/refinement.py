"""A Transformer over the last tokens of both towers, read at two tokens of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.scorer import RefinementSection

NUM_SCORES = 2


class RefinementLayer(nn.Module):
    """Pre-norm attention and MLP. Dropout is on both branches and not on attention weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (n, T, W); mask (n, 1, 1, T), True for tokens that may be read."""
        count, length, width = tokens.shape
        joined = self.attention_in(self.attention_norm(tokens))
        query, key, value = joined.view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read = read.transpose(1, 2).reshape(count, length, width)
        tokens = tokens + self.attention_dropout(self.attention_out(read))
        return tokens + self.mlp_dropout(self.mlp(self.mlp_norm(tokens)))


class Refinement(nn.Module):
    """Tokens of image and prompt, each kind projected and marked, behind a token for each score.

    The score tokens start from CLIP's features, so that the heads of CLIP itself take part and are trained.
    """

    def __init__(
        self, section: RefinementSection, *, image_width: int, text_width: int, feature_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.image_input = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, section.width))
        self.text_input = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, section.width))
        self.score_input = nn.Linear(3 * feature_width, NUM_SCORES * section.width)
        self.layers = nn.ModuleList(
            RefinementLayer(section.width, section.num_heads, dropout) for _ in range(section.num_layers)
        )
        self.norm = nn.LayerNorm(section.width)

    def forward(self, found: dict[str, Tensor], attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's features and tokens, with the prompt's mask (n, L), to what quality and consistency are read from, (n, W).

        A bias in each projection marks its kind of token.
        """
        image, text = found["image_features"], found["text_features"]
        features = torch.cat([image, text, image * text], 1)
        scores = self.score_input(features).view(len(image), NUM_SCORES, -1)
        tokens = torch.cat(
            [scores, self.image_input(found["image_tokens"]), self.text_input(found["text_tokens"])], dim=1
        )
        num_others = tokens.shape[1] - attention_mask.shape[1]
        mask = F.pad(attention_mask.bool(), (num_others, 0), value=True)[:, None, None, :]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        read = self.norm(tokens[:, :NUM_SCORES])
        return read[:, 0], read[:, 1]
