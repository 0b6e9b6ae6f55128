"""What every task with a CLIP-like model in it does alike."""

from pathlib import Path
from typing import Any

from accel_train.config.contrastive import Backbone, ClipModelSection, ContrastiveConfig, DualEncoderSection
from accel_train.data.text import CaptionTokenizer
from accel_train.errors import UserError
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.tasks.teacher import kinds_of


def check_tokenizer(
    tokenizer: CaptionTokenizer, model: ContrastiveModel, section: ClipModelSection | DualEncoderSection
) -> None:
    """The token ids must be rows of the embeddings, and CLIP must find the token it takes a text's feature from."""
    text: Any = model.get_submodule("text_model").config
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"data.tokenizer has {tokenizer.vocab_size} tokens, but the text tower embeds {text.vocab_size}. "
            "Take the model's own tokenizer, or for random weights set vocab_size in the text tower's configuration."
        )
    if section.type == "clip":
        input_ids, attention_mask = tokenizer.encode("a")
        last = int(input_ids[attention_mask.bool()][-1])
        if last != text.eos_token_id:
            raise UserError(
                f"data.tokenizer ends a text with token {last}, but the text tower takes its feature from token "
                f"{text.eos_token_id}. For random weights set model.config.text_config.eos_token_id={last}."
            )


def reads_padding(config: ContrastiveConfig) -> bool:
    """Whether a text's feature depends on how far it is padded: SigLIP takes it from the last position, padding or not.

    A live teacher that reads the captions may be a SigLIP, too.
    """
    section = config.distillation
    has_reading_teacher = section is not None and section.teacher is not None and "text" in kinds_of(section)
    return has_reading_teacher or (isinstance(config.model, ClipModelSection) and config.model.type == "siglip")


def section_of_export(
    section: ClipModelSection | DualEncoderSection, folder: str
) -> ClipModelSection | DualEncoderSection:
    """The section that rebuilds an exported CLIP-like model from its own folder."""
    changes: dict[str, Any] = {"temperature": None}
    if isinstance(section, DualEncoderSection):
        changes |= {name: Backbone(pretrained=str(Path(folder) / name)) for name in ("image", "text")}
    else:
        changes |= {"pretrained": folder, "size": None, "config": {}}
    return section.model_copy(update=changes)
