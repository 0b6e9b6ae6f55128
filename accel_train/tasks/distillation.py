"""What distillation adds to the contrastive task: columns of the batch, losses, and a map between unequal widths."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from accel_train.config.contrastive import ContrastiveConfig, DistillationSection
from accel_train.errors import UserError
from accel_train.losses.distillation import feature_loss, similarity_loss
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.teacher import build_teacher, teacher_config
from accel_train.tasks.task import Batch
from accel_train.tasks.teacher import kinds_of, teacher_width

SIDES = {
    "image_features": ("the image tower and its projection", ("vision_model.", "visual_projection.")),
    "text_features": ("the text tower and its projection", ("text_model.", "text_pooling.", "text_projection.")),
}
"""What each guide teaches: in words, and how the parameters' names begin."""


def teacher_columns(section: DistillationSection) -> tuple[str, ...]:
    """Columns that a teacher adds to a batch and the losses read."""
    columns = tuple(f"teacher_{kind}_features" for kind in kinds_of(section))
    return (*columns, "teacher_logit_scale") if "similarity" in section.guides else columns


def distillation_losses(
    section: DistillationSection, outputs: Batch, batch: Batch, chunk_size: int
) -> dict[str, Tensor]:
    """distillation.weight x the loss of each guide, by name. With `anchors` in the batch, of these rows alone."""
    rows = None if "anchors" not in batch else (int(batch["anchors"][0]), int(batch["anchors"][1]))
    losses = {}
    for guide in section.guides:
        if guide == "similarity":
            loss = similarity_loss(
                outputs["image_features"],
                outputs["text_features"],
                outputs["logit_scale"],
                batch["teacher_image_features"],
                batch["teacher_text_features"],
                batch["teacher_logit_scale"][:1],
                chunk_size=chunk_size,
                anchors=rows,
            )
        else:
            student = outputs.get(f"projected_{guide}", outputs[guide])
            loss = feature_loss(student, batch[f"teacher_{guide}"], anchors=rows)
        losses[f"distillation_{guide}"] = section.weight * loss
    return losses


def project_to_teacher(model: ContrastiveModel, config: ContrastiveConfig) -> None:
    """Adds a learnt map to the model if its features and the teacher's, which they are to imitate, differ in width."""
    section = config.distillation
    assert section is not None
    kinds = [kind for kind in kinds_of(section) if f"{kind}_features" in section.guides]
    if kinds and (width := teacher_width(config)) != model.feature_width:
        model.project_for_teacher(kinds, width)
        model.notes += (
            f"features are {model.feature_width} wide and the teacher's {width}: a learnt teacher_projection maps them",
        )


def teacher_bytes(config: ContrastiveConfig) -> int:
    """Memory of a live teacher's weights on every rank."""
    section = config.distillation
    if section is None or section.teacher is None:
        return 0
    with torch.device("meta"):
        teacher = build_teacher(teacher_config(config, reads_texts="text" in kinds_of(section)))
    return sum(parameter.numel() * parameter.element_size() for parameter in teacher.parameters())


def distillation_hazards(config: ContrastiveConfig) -> list[str]:
    """What `plan` says of a live teacher."""
    num_bytes = teacher_bytes(config)
    if not num_bytes:
        return []
    return [
        f"The teacher's {num_bytes // 4:,} parameters are held by every rank beside the model, {num_bytes / 1e9:.3g} GB, "
        "and it reads every sample. Stored features (accel-train embed, distillation.features) cost neither."
    ]


def refuse_frozen_students(model: nn.Module, section: DistillationSection, frozen: Collection[str]) -> None:
    """Raises UserError for a guide of features that never change."""
    for guide in section.guides:
        if guide == "similarity":
            continue
        words, beginnings = SIDES[guide]
        if all(name in frozen for name, _ in model.named_parameters() if name.startswith(beginnings)):
            raise UserError(
                f"distillation.guides: {guide} would teach nothing, since {words} are frozen. Take it out, or give them a "
                "learning rate."
            )
