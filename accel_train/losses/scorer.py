"""Losses of scores against ratings, and of image-prompt pairs against explanations."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from accel_train.losses.contrastive import info_nce


def rating_loss(
    predicted: Tensor,
    rated: Tensor,
    *,
    name: Literal["mse", "smooth_l1"] = "mse",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    mean_rating: float = 0.0,
) -> Tensor:
    """Mean over rows of the loss between (n,) predictions and ratings; 0-d.

    The target is (1 - e) x rating + e x mean_rating with e = label_smoothing. smooth_l1 with d = |difference|:
    d^2 / (2 beta) up to beta, then d - beta / 2 (Girshick 2015).
    """
    target = (1 - label_smoothing) * rated.to(predicted.dtype) + label_smoothing * mean_rating
    if name == "mse":
        return F.mse_loss(predicted, target)
    return F.smooth_l1_loss(predicted, target, beta=beta)


def explanation_loss(
    pair_features: Tensor,
    explanation_features: Tensor,
    logit_scale: Tensor,
    *,
    explanation_key: Tensor,
    has_explanation: Tensor,
) -> Tensor:
    """InfoNCE between (image, prompt) pairs and explanations, over the rows that have one; 0-d.

    Features (B, D) of unit length; explanation_key (B,) integers that tell equal explanations, which are positives of each
    other; has_explanation (B,) booleans. The mean is over the rows with an explanation; without any it is 0, with a gradient
    of 0.
    """
    rows = has_explanation.nonzero().flatten()
    if len(rows) == 0:
        return (pair_features.sum() + explanation_features.sum() + logit_scale.sum()) * 0
    key = explanation_key[rows]
    return info_nce(
        pair_features[rows], explanation_features[rows], logit_scale, image_key=key, text_key=key, positives="shared"
    )
