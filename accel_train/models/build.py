"""The model that a configuration asks for."""

from accel_train.config.contrastive import ContrastiveConfig, DualEncoderSection
from accel_train.models.batch_norm import apply_batch_norm
from accel_train.models.clip import build_clip
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.dual_encoder import build_dual_encoder


def build_contrastive_model(config: ContrastiveConfig) -> ContrastiveModel:
    """A contrastive model with its starting weights in fp32; random ones are drawn from torch's global generator.

    Inside `torch.device("meta")` it has shapes alone: no weights are drawn or read, only a folder's config.json.
    """
    model: ContrastiveModel
    if isinstance(config.model, DualEncoderSection):
        model = build_dual_encoder(config, config.model)
    else:
        model = build_clip(config, config.model)
    apply_batch_norm(model, config.model.batch_norm)
    return model.train()
