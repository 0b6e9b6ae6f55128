"""Losses by which a student imitates a frozen teacher.

`anchors` splits the work as in `contrastive`: over a partition of the rows, losses and gradients add up to the whole.
"""

from functools import partial

import torch
from torch import Tensor

from accel_train.losses.chunked import CHUNK_SIZE, PairLoss, check_pairs, chunked_loss


def feature_loss(student: Tensor, teacher: Tensor, *, anchors: tuple[int, int] | None = None) -> Tensor:
    """Mean over rows of 1 - cosine(student, teacher), as in the original Chinese-CLIP trainer (cosineSimilarityLoss).

    student, teacher: (B, D), L2-normalised. Returns a 0-d tensor in fp32 (fp64 for fp64).
    """
    if student.shape != teacher.shape:
        raise ValueError(f"features differ in shape: {tuple(student.shape)}, {tuple(teacher.shape)}")
    start, stop = anchors or (0, len(student))
    dtype = torch.promote_types(student.dtype, torch.float32)
    cosine = (student[start:stop].to(dtype) * teacher[start:stop].to(dtype)).sum(1)
    return (1 - cosine).sum() / len(student)


def similarity_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    anchors: tuple[int, int] | None = None,
) -> Tensor:
    """Mean over the 2B rows of KL(teacher || student) between softmaxes of a row of similarities.

    A row holds scale x cosine of one image with all texts, or of one text with all images; each model has its own scale
    and width (Yang et al. 2024, arXiv:2307.12732, contrastive relational distillation). So it is the cross-entropy against
    the teacher's softmax (open_clip's distillation) less the teacher's entropy: 0 where both models agree.
    """
    check_pairs(image_features, text_features)
    teacher_image, teacher_text = teacher_image_features.detach(), teacher_text_features.detach()
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    teacher = teacher_image.to(dtype), teacher_text.to(dtype), teacher_logit_scale.detach().to(dtype)
    loss = PairLoss(
        _divergence_rows, partial(_teacher_logits, *teacher), both_directions=True, num_rows=len(image_features)
    )
    rows = anchors or (0, len(image_features))
    return chunked_loss(image_features, text_features, logit_scale, None, loss, rows, chunk_size)


def _teacher_logits(
    image: Tensor, text: Tensor, scale: Tensor, start: int, stop: int, direction: int
) -> tuple[Tensor, ...]:
    anchors, others = (text, image) if direction else (image, text)
    return ((anchors[start:stop] * scale) @ others.T,)


def _divergence_rows(logits: Tensor, teacher_logits: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(teacher || student), and its gradient for the student's logits: student - teacher."""
    student, teacher = logits.log_softmax(1), teacher_logits[0].log_softmax(1)
    wanted = teacher.exp()
    return (wanted * (teacher - student)).sum(), student.exp().sub_(wanted)
