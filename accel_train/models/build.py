"""The model that a configuration asks for."""

from collections.abc import Collection

from torch import nn

from accel_train.config.contrastive import ContrastiveConfig, DualEncoderSection, ModelSection
from accel_train.errors import UserError
from accel_train.models.batch_norm import apply_batch_norm
from accel_train.models.clip import build_clip
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.dual_encoder import build_dual_encoder
from accel_train.models.patch_dropout import drop_patches
from accel_train.models.patches import multiply_patches


def build_contrastive_model(config: ContrastiveConfig) -> ContrastiveModel:
    """A contrastive model with its starting weights in fp32; random ones are drawn from torch's global generator.

    Inside `torch.device("meta")` it has shapes alone: no weights are drawn or read, only a folder's config.json.
    """
    model: ContrastiveModel
    if isinstance(config.model, DualEncoderSection):
        model = build_dual_encoder(config, config.model)
    else:
        model = build_clip(config, config.model)
    multiply_patches(model)
    return model.train()


def adapt_to_training(model: nn.Module, section: ModelSection, frozen: Collection[str]) -> None:
    """What a run changes in a built model: BatchNorm layers that train, and patches that training leaves out.

    `frozen` names the parameters that never train. Raises UserError for what the model or its frozen parts forbid.
    """
    apply_batch_norm(model, section.batch_norm, frozen)
    if section.mask_ratio > 0:
        drop_patches(model, section.mask_ratio)
        if all(f"vision_model.{name}" in frozen for name, _ in model.get_submodule("vision_model").named_parameters()):
            raise UserError(
                f"model.mask_ratio is {section.mask_ratio:g}, but the image tower is frozen, so it stays in eval mode and "
                "sees all patches. Set it to 0, or give the tower a learning rate."
            )
