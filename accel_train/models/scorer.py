"""Scores of an image and its prompt on top of a CLIP-like model.

Parameters: `clip.*` (the model's own names), and beside it `similarity_map.*`, `quality_head.*`, `consistency_head.*`,
`refinement.*` and `pair_projection.*`, as far as the configuration has them.

With s the cosine of image and prompt, scores on a scale from 0 to 1 are

    residual     consistency = a_c s + b_c + scale_consistency x head([image, text, image x text])    a_c, b_c from 1, 0
                 quality     = a_q s + b_q + scale_quality x head(image)                              a_q, b_q from 0, 1/2
                 With quality_layers, the latter head reads the spread of low image layers too.
    refinement   both by a Transformer over the tokens of both towers
    neither      both (1 + s) / 2

The heads of `residual` end in zeros, so that training starts from CLIP's similarity and, for quality, from no opinion.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.scorer import RefinementSection, ResidualSection, ScorerConfig
from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.contrastive_model import ContrastiveModel, layer_statistics
from accel_train.models.dual_encoder import output_width
from accel_train.models.modified_resnet import ModifiedResNet
from accel_train.models.refinement import Refinement

CLIP = "clip."
"""What stands before the names of CLIP's parameters."""
MIDDLE = 0.5
"""Of the scale of scores."""


class SimilarityMap(nn.Module):
    """Quality and consistency as affine maps of the cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.offset = nn.Parameter(torch.tensor([MIDDLE, 0.0]))

    def forward(self, similarity: Tensor) -> Tensor:
        """(n,) to (n, 2): quality, consistency."""
        return similarity.unsqueeze(1) * self.slope + self.offset


class Scorer(nn.Module):
    """A CLIP-like model with heads. `forward` is what the module's docstring says."""

    def __init__(self, clip: ContrastiveModel, config: ScorerConfig) -> None:
        super().__init__()
        section = config.model
        self.clip = clip
        self.residual: ResidualSection | None = section.residual
        self.refinement: Refinement | None = None
        self.has_heads = section.residual is not None or section.refinement is not None
        feature_width = clip.feature_width
        image_width, pair_width = feature_width, 3 * feature_width
        self.quality_layers = section.quality_layers
        if self.quality_layers > 0:
            image_width += _statistics_width(clip, config.data.image_size, self.quality_layers)
        if section.residual is not None:
            self.similarity_map = SimilarityMap()
        if section.refinement is not None:
            self.refinement = _refinement(clip, section.refinement, section.dropout)
            image_width = pair_width = section.refinement.width
        if self.has_heads:
            corrects = section.residual is not None
            self.quality_head = score_head(image_width, section.hidden_quality, section.dropout, from_zero=corrects)
            self.consistency_head = score_head(
                pair_width, section.hidden_consistency, section.dropout, from_zero=corrects
            )
        self.pair_projection: nn.Linear | None = None
        if config.loss.explanation_weight > 0:
            self.pair_projection = nn.Linear(2 * feature_width, feature_width, bias=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """quality and consistency, (n,), 0 to 1 in tendency.

        The batch is CLIP's, with explanation_ids and explanation_mask (n, L) where explanations are learnt from. Then there
        are pair_features and explanation_features, (n, D) of unit length, and logit_scale (1,) too.
        """
        found = self.clip(batch, with_tokens=self.refinement is not None, num_layers=self.quality_layers)
        image, text = found["image_features"], found["text_features"]
        scores = self._scores(found, image, text, batch["attention_mask"])
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        outputs = {"quality": scores[:, 0], "consistency": scores[:, 1]}
        if self.pair_projection is not None:
            pair = self.pair_projection(torch.cat([image, text], 1))
            outputs["pair_features"] = F.normalize(pair.to(image.dtype), dim=-1)
            outputs["logit_scale"] = found["logit_scale"]
        if "explanation_ids" in batch:
            explained = {"input_ids": batch["explanation_ids"], "attention_mask": batch["explanation_mask"]}
            outputs["explanation_features"] = self.clip(explained)["text_features"]
        return outputs

    def _scores(self, found: dict[str, Tensor], image: Tensor, text: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, 2)."""
        similarity = (image * text).sum(1)
        if self.refinement is not None:
            quality, consistency = self.refinement(found, attention_mask)
            return MIDDLE + torch.cat([self.quality_head(quality), self.consistency_head(consistency)], 1)
        if self.residual is None:
            return ((1 + similarity) / 2).unsqueeze(1).expand(-1, 2)
        both = torch.cat([image, text, image * text], 1)
        base: Tensor = self.similarity_map(similarity)
        seen = torch.cat([image, found["image_statistics"]], 1) if self.quality_layers else image
        correction = torch.cat([self.quality_head(seen), self.consistency_head(both)], 1)
        scales = correction.new_tensor([self.residual.scale_quality, self.residual.scale_consistency])
        return base + scales * correction


def build_scorer(config: ScorerConfig) -> Scorer:
    """The scorer with CLIP's starting weights and random heads; on the meta device without values."""
    return Scorer(build_contrastive_model(config.clip_config()), config).train()


def score_head(width: int, hidden: int, dropout: float, *, from_zero: bool) -> nn.Sequential:
    """(n, width) to (n, 1). Features of unit length are tiny in each component, hence the norm before the first layer."""
    last = nn.Linear(hidden, 1)
    if from_zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), last)


def _statistics_width(clip: ContrastiveModel, image_size: int, num_layers: int) -> int:
    """Length of image_statistics, from a forward pass of one image."""
    if _pools_out_of_sight(clip, "vision_model"):
        raise UserError("model.quality_layers: the image tower of this model does not show its layers. Set it to 0.")
    mode = clip.training
    with torch.no_grad():
        layers = clip.eval().encode_images(torch.zeros(1, 3, image_size, image_size), with_layers=True).layers
    clip.train(mode)
    if num_layers > len(layers):
        raise UserError(
            f"model.quality_layers is {num_layers}, but the image tower has {len(layers)}, its embeddings included."
        )
    return layer_statistics(layers[:num_layers]).shape[1]


def _pools_out_of_sight(clip: ContrastiveModel, tower: str) -> bool:
    """Whether a tower is CLIP's ResNet, which is no model of transformers and gives its pooled output alone."""
    return isinstance(clip.get_submodule(tower), ModifiedResNet)


def _refinement(clip: ContrastiveModel, section: RefinementSection, dropout: float) -> Refinement:
    widths = []
    for name in ("vision_model", "text_model"):
        if _pools_out_of_sight(clip, name):
            raise UserError(
                f"model.refinement reads the tokens of both towers, and {name} of this model pools them out of sight. Use "
                "model.residual."
            )
        tower: Any = clip.get_submodule(name)
        widths.append(output_width(tower.config))
    return Refinement(
        section, image_width=widths[0], text_width=widths[1], feature_width=clip.feature_width, dropout=dropout
    )
