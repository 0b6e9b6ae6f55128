"""Models from random weights, by the size of the data: a few thousand samples fill a small one."""

from typing import Any

from accel_train.tools.init.choices import SMALL_MODEL

SMALL_WIDTH, LARGE_WIDTH = 128, 512


def convnext(num_samples: int) -> dict[str, Any]:
    # The default of layer_scale_init_value, 1e-6, starts every block as nothing: too slow for a short run.
    if num_samples < SMALL_MODEL:
        return {"num_stages": 3, "depths": [1, 2, 1], "hidden_sizes": [40, 80, 160], "layer_scale_init_value": 0.1}
    return {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768], "layer_scale_init_value": 0.1}


def bert(num_samples: int, vocab_size: int) -> dict[str, Any]:
    return {"vocab_size": vocab_size} | transformer(num_samples)


def transformer(num_samples: int) -> dict[str, Any]:
    width = SMALL_WIDTH if num_samples < SMALL_MODEL else LARGE_WIDTH
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2 if width == SMALL_WIDTH else 6,
        "num_attention_heads": width // 32,
    }


def chinese_clip(num_samples: int, vocab_size: int) -> dict[str, Any]:
    """Changes to the named size `tiny`. The usual initializer_range of 0.02 leaves all images and captions nearly alike."""
    towers = transformer(num_samples)
    return {
        "projection_dim": towers["hidden_size"],
        "vision_config": towers | {"initializer_range": 0.05},
        "text_config": {"vocab_size": vocab_size} | towers | {"initializer_range": 0.1},
    }
