"""Named sizes of the CLIP-like families, as changes to the defaults of their transformers configurations.

The Chinese-CLIP sizes are those of the original project's model configurations (Yang et al. 2022, arXiv:2211.01335);
sizes whose vision_config has `depths` are those of its ResNet tower. CLIP: Radford et al. 2021, table 20.
"""

from typing import Any

_BERT_VOCABULARY = 21128
_ROBERTA_BASE = {"vocab_size": _BERT_VOCABULARY}
_ROBERTA_LARGE = {
    "vocab_size": _BERT_VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_RBT3 = {"vocab_size": _BERT_VOCABULARY, "num_hidden_layers": 3}
_VIT_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_VIT_HUGE = _VIT_LARGE | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_CLIP_TEXT_LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_IMAGE = _TINY | {"patch_size": 8}
_TINY_TEXT = _TINY | {
    "vocab_size": _BERT_VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 101,  # [CLS] and [SEP] of the Chinese BERT vocabulary
    "eos_token_id": 102,
}
_RN50 = {"width": 64, "depths": [3, 4, 6, 3], "num_attention_heads": 32}
_TINY_RESNET = {"width": 4, "depths": [1, 2, 1, 1], "num_attention_heads": 4}


def _size(image: dict[str, Any], text: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"vision_config": image, "text_config": text, **others}


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "chinese_clip": {
        "tiny": _size(_TINY_IMAGE, _TINY_TEXT, projection_dim=16),
        "tiny_resnet": _size(_TINY_RESNET, _TINY_TEXT, projection_dim=16),
        "rn50": _size(_RN50, _RBT3, projection_dim=1024),
        "vit_b_16_rbt3": _size({"patch_size": 16}, _RBT3),
        "vit_b_16": _size({"patch_size": 16}, _ROBERTA_BASE),
        "vit_l_14": _size(_VIT_LARGE, _ROBERTA_BASE, projection_dim=768),
        "vit_l_14_336": _size(_VIT_LARGE | {"image_size": 336}, _ROBERTA_BASE, projection_dim=768),
        "vit_h_14": _size(_VIT_HUGE, _ROBERTA_LARGE, projection_dim=1024),
    },
    "clip": {
        "tiny": _size(_TINY_IMAGE, _TINY_TEXT, projection_dim=16),
        "vit_b_32": _size({"patch_size": 32}, {}),
        "vit_b_16": _size({"patch_size": 16}, {}),
        "vit_l_14": _size(_VIT_LARGE, _CLIP_TEXT_LARGE, projection_dim=768),
    },
    "siglip": {
        "tiny": _size(_TINY_IMAGE, _TINY_TEXT | {"projection_size": 32}),
        "base": _size({"patch_size": 16}, {}),
    },
}
