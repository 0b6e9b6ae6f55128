import pytest
import torch

from accel_train.errors import UserError
from accel_train.models.blocks import checkpoint_activations, repeated_blocks
from accel_train.models.build import build_contrastive_model
from accel_train.models.cn_clip import resnet
from accel_train.models.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from accel_train.models.name_map import to_ours
from tests.models.originals import ModifiedResNet as Original
from tests.models.originals import shaken

TINY = {
    "type": "chinese_clip",
    "size": "tiny_resnet",
    "batch_norm": "frozen",
    "config": {"text_config": {"vocab_size": 100}},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (2, 1, 3, 1)])
def test_equals_the_originals_definition(depths, training) -> None:
    torch.manual_seed(2)
    theirs = shaken(Original(width=8, layers=depths, grid=2, out=5)).train(training)
    config = ModifiedResNetConfig(width=8, depths=depths, image_size=64, num_attention_heads=4)
    ours = ModifiedResNet(config, projection_dim=5).train(training)
    weights = {f"visual.{name}": value for name, value in theirs.state_dict().items()}
    prefix = "vision_model."
    ours.load_state_dict(
        {name.removeprefix(prefix): value for name, value in to_ours(weights, resnet(depths), "").items()}
    )
    pixels = torch.randn(3, 3, 64, 64)
    found = ours(pixels)
    torch.testing.assert_close(found.pooler_output, theirs(pixels), rtol=0, atol=1e-6)
    assert found.last_hidden_state.shape == (3, 4, 256)


def test_the_named_size_is_resnet_50(make_config) -> None:
    """Shapes of the published RN50: 38,316,896 parameters of the image tower, as in OpenAI's model."""
    with torch.device("meta"):
        section = TINY | {"size": "rn50", "config": {}}
        model = build_contrastive_model(make_config(section, image_size=224, max_text_length=52))
    assert sum(p.numel() for p in model.vision_model.parameters()) == 38_316_896
    assert model.text_model.config.num_hidden_layers == 3
    assert model.vision_model.pool.position_embedding.shape == (50, 2048)
    assert [len(stage.layers) for stage in model.vision_model.stages] == [3, 4, 6, 3]
    assert len(repeated_blocks(model)) == 16 + 3


def test_blocks_start_as_their_shortcut(make_config) -> None:
    model = build_contrastive_model(make_config(TINY)).vision_model
    block = model.stages[1].layers[1].eval()
    values = torch.rand(2, 32, 4, 4)
    assert torch.equal(block(values), values)
    assert model.pool.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_trains_with_checkpointed_activations(make_config, batch) -> None:
    torch.manual_seed(0)
    gradients = []
    model = build_contrastive_model(make_config(TINY)).eval()
    for _ in range(2):
        model.zero_grad()
        model(batch)["image_features"].square().sum(1).mean().backward()
        model(batch)["image_features"][:, 0].sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.vision_model.named_parameters()})
        checkpoint_activations(model)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        ({"vision_config": {"depths": [1, 1]}}, {}, "model.config: .*depths must have four numbers"),
        ({"vision_config": {"num_attention_heads": 7}}, {}, "model.config: .*not a multiple of 7 heads"),
        ({"vision_config": {"patch_size": 16}}, {}, "model.config: .*patch_size is always 32"),
        ({"vision_config": {"hidden_size": 16}}, {}, "vision_config.hidden_size: "),
        ({}, {"image_size": 48}, "not a multiple of the patch size 32"),
    ],
)
def test_wrong_settings_are_named(config, sizes, message, make_config) -> None:
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(TINY | {"config": config}, **sizes))
