"""Layer lists by name: where the layers of a known backbone are, so that `layers: convnext` needs no patterns.

Each list runs from input to output, in the notation of `Tower.layers`. A part that a model lacks (a pooler, a
classifier) is passed over, so one list serves the bare backbone, the backbone inside our models and the classifier.
Final norms and poolers learn with the last block, and ConvNeXt's downsampling with the block that follows it; its final
norm, SigLIP's heads and the attention pooling of CLIP's ResNet are a layer of their own. For ViT, ConvNeXt and ResNet
these are timm's depths.
"""

_IMAGE = r"^(?:clip\.|image_encoder\.)?(?:vision_model\.)*"
_TEXT = r"^(?:clip\.|text_encoder\.)?(?:text_model\.)*"
_CLASSIFIER = r"^classifier\."


def _image_transformer(stem: str) -> tuple[str, ...]:
    """CLIP's image tower under the names that CLIP, Chinese-CLIP and SigLIP share in transformers."""
    return (
        _IMAGE + rf"(?:{stem})",
        _IMAGE + r"(?:encoder\.layers\.(\d+)\.|post_layernorm\.)",
        _IMAGE + r"head\.",
    )


def _causal_text_transformer() -> tuple[str, ...]:
    return (_TEXT + r"embeddings\.", _TEXT + r"(?:encoder\.layers\.(\d+)\.|final_layer_norm\.)", _TEXT + r"head\.")


def _bert(prefix: str) -> tuple[str, ...]:
    return (prefix + r"embeddings\.", prefix + r"(?:encoder\.layer\.(\d+)\.|pooler\.)")


def _vit(prefix: str) -> tuple[str, ...]:
    blocks = r"(?:(?:layers|encoder\.layer)\.(\d+)\.|layernorm\.|pooler\.)"
    return (prefix + r"embeddings\.", prefix + blocks, _CLASSIFIER)


LAYER_LISTS: dict[str, tuple[str, ...]] = {
    "clip_image": _image_transformer(r"embeddings\.|pre_layrnorm\."),
    "clip_text": _causal_text_transformer(),
    "chinese_clip_image": _image_transformer(r"embeddings\.|pre_layrnorm\."),
    "chinese_clip_text": _bert(_TEXT),
    "siglip_image": _image_transformer(r"embeddings\."),
    "siglip_text": _causal_text_transformer(),
    "bert": (*_bert(r"^(?:clip\.|text_encoder\.)?(?:text_model\.|bert\.)*"), _CLASSIFIER),
    "vit": _vit(r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|vit\.)*"),
    "dinov2": _vit(r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|dinov2\.)*"),
    "convnext": (
        r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|convnext\.)*embeddings\.",
        r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|convnext\.)*encoder\.stages\.(\d+)\.(?:downsampling_layer\.|layers\.(\d+)\.)",
        r"^(?:clip\.|image_encoder\.)?(?:(?:vision_model\.|convnext\.)*layernorm\.|classifier\.)",
    ),
    "resnet": (
        r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|resnet\.)*embedder\.",
        r"^(?:clip\.|image_encoder\.)?(?:vision_model\.|resnet\.)*encoder\.stages\.(\d+)\.layers\.(\d+)\.",
        _CLASSIFIER,
    ),
    "cn_clip_resnet": (
        _IMAGE + r"stem\.",
        _IMAGE + r"stages\.(\d+)\.layers\.(\d+)\.",
        _IMAGE + r"pool\.",
    ),
    "llama": (
        r"^(?:llm\.)?(?:model\.)?embed_tokens\.",
        r"^(?:llm\.)?(?:model\.)?(?:layers\.(\d+)\.|norm\.)",
        r"^(?:llm\.)?(?:score|lm_head)\.",
    ),
}
