"""Which parameters weight decay leaves alone."""

import re
from collections.abc import Sequence

from torch import nn

from accel_train.config.schema import OptimizerSection
from accel_train.errors import UserError

_BLOCK = r"^vision_model\.encoder\.layers\.(\d+)\."

CN_CLIP_NAMES: tuple[tuple[str, str], ...] = (
    (r"^text_model\.", r"bert."),
    (r"^vision_model\.embeddings\.class_embedding$", r"visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", r"visual.positional_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", r"visual.conv1."),
    (r"^vision_model\.pre_layrnorm\.", r"visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", r"visual.ln_post."),
    (rf"{_BLOCK}self_attn\.[qkv]_proj\.(weight|bias)$", r"visual.transformer.resblocks.\1.attn.in_proj_\2"),
    (rf"{_BLOCK}self_attn\.out_proj\.", r"visual.transformer.resblocks.\1.attn.out_proj."),
    (rf"{_BLOCK}layer_norm([12])\.", r"visual.transformer.resblocks.\1.ln_\2."),
    (rf"{_BLOCK}mlp\.fc1\.", r"visual.transformer.resblocks.\1.mlp.c_fc."),
    (rf"{_BLOCK}mlp\.fc2\.", r"visual.transformer.resblocks.\1.mlp.c_proj."),
    (r"^vision_model\.stem\.conv", r"visual.conv"),
    (r"^vision_model\.stem\.norm", r"visual.bn"),
    *(
        (rf"^vision_model\.stages\.{stage}\.layers\.(\d+)\.{ours}", rf"visual.layer{stage + 1}.\1.{theirs}")
        for stage in range(4)
        for ours, theirs in (
            ("conv", "conv"),
            ("norm", "bn"),
            (r"shortcut\.conv", "downsample.0"),
            (r"shortcut\.norm", "downsample.1"),
        )
    ),
    (r"^vision_model\.pool\.position_embedding$", r"visual.attnpool.positional_embedding"),
    (r"^vision_model\.pool\.out_proj\.", r"visual.attnpool.c_proj."),
    (r"^vision_model\.pool\.", r"visual.attnpool."),
    (r"^visual_projection\.weight$", r"visual.proj"),
    (r"^text_projection\.weight$", r"text_projection"),
    (r"^logit_scale$", r"logit_scale"),
    (r"^(teacher_projection\.weight)$", r"\1"),  # the original has none; under its rule a matrix decays
)
"""Names of our Chinese-CLIP models, with a ViT (transformers' own names) or a ResNet, and what the original trainer calls
them. It holds query, key and value of a ViT in one tensor, so three names map to one."""


def exempt_parameters(parameters: Sequence[tuple[str, nn.Parameter]], config: OptimizerSection) -> set[str]:
    """Names of the parameters with weight decay 0, by `no_decay` and `no_decay_layers`."""
    if config.no_decay == "vectors":
        exempt = {name for name, parameter in parameters if parameter.ndim <= 1}
    elif config.no_decay == "chinese_clip":
        exempt = {name for name, _ in parameters if exempt_in_chinese_clip(name)}
    else:
        exempt = set()
    for pattern in config.no_decay_layers:
        matched = {name for name, _ in parameters if re.search(pattern, name)}
        if not matched:
            raise UserError(f"optimizer.no_decay_layers: '{pattern}' matches no parameter. Correct or remove it.")
        exempt |= matched
    return exempt


def exempt_in_chinese_clip(name: str) -> bool:
    """The rule of OFA-Sys/Chinese-CLIP, cn_clip/training/main.py, applied to the parameter's name in that code.

    It looks for substrings, so it spares the image tower's `ln_1` and every bias, and decays BERT's `LayerNorm.weight`
    and the class embedding; of a ResNet it decays the norms of the shortcuts (`downsample.1`).
    """
    original = cn_clip_name(name)
    return any(part in original for part in ("bn", "ln", "bias", "logit_scale"))


def cn_clip_name(name: str) -> str:
    """A parameter of our Chinese-CLIP models under its name in the original trainer."""
    for pattern, replacement in CN_CLIP_NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise UserError(
        f"optimizer.no_decay is chinese_clip, but '{name}' is not a parameter of a chinese_clip model, and the rule "
        "goes by the original trainer's names. Use no_decay: vectors."
    )
