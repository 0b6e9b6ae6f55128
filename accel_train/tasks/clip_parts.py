"""What every task with a CLIP-like model in it does alike."""

from pathlib import Path
from typing import Any

from accel_train.config.contrastive import Backbone, ClipModelSection, DualEncoderSection
from accel_train.data.text import CaptionTokenizer
from accel_train.errors import UserError
from accel_train.models.contrastive_model import ContrastiveModel


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
