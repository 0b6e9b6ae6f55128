import pytest
import torch

from accel_train.models.build import build_contrastive_model

MILLIONS = {
    # Table 2 of the Chinese-CLIP paper (image and text tower) gives 86 + 102, 304 + 102, 304 + 102, 632 + 325.
    ("chinese_clip", "vit_b_16", 224): 188,
    ("chinese_clip", "vit_l_14", 224): 406,
    ("chinese_clip", "vit_l_14_336", 336): 407,
    ("chinese_clip", "vit_h_14", 224): 958,
    # The published models: 151.3M, 149.6M, 427.6M; SigLIP base 203M.
    ("clip", "vit_b_32", 224): 151.3,
    ("clip", "vit_b_16", 224): 149.6,
    ("clip", "vit_l_14", 224): 427.6,
    ("siglip", "base", 224): 203.2,
}


@pytest.mark.parametrize(("family", "size", "image_size"), MILLIONS)
def test_named_sizes_have_the_published_number_of_parameters(family, size, image_size, make_config) -> None:
    with torch.device("meta"):
        model = build_contrastive_model(make_config({"type": family, "size": size}, image_size=image_size))
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert found == pytest.approx(MILLIONS[family, size, image_size], rel=0.005)


def test_the_huge_image_tower_has_sixteen_heads_of_width_eighty(make_config) -> None:
    with torch.device("meta"):
        config = build_contrastive_model(
            make_config({"type": "chinese_clip", "size": "vit_h_14"}, image_size=224)
        ).config
    assert config.vision_config.num_attention_heads == 16
    assert config.vision_config.hidden_size == 16 * 80
    assert config.projection_dim == 1024
