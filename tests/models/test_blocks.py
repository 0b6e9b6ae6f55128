import copy

import pytest
import torch
from torch import nn

from accel_train.models.blocks import checkpoint_activations, compile_blocks, repeated_blocks
from accel_train.models.build import build_contrastive_model

BLOCKS = {
    "chinese_clip": [f"text_model.encoder.layer.{i}" for i in (0, 1)]
    + [f"vision_model.encoder.layers.{i}" for i in (0, 1)],
    "clip": [f"{tower}_model.encoder.layers.{i}" for tower in ("text", "vision") for i in (0, 1)],
    "siglip": [f"{tower}_model.encoder.layers.{i}" for tower in ("text", "vision") for i in (0, 1)],
    "vit": ["vision_model.layers.0", "vision_model.layers.1"],
    "dinov2": ["vision_model.encoder.layer.0", "vision_model.encoder.layer.1"],
    "convnext": [f"vision_model.encoder.stages.{s}.layers.{i}" for s, i in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]],
    "resnet": [f"vision_model.encoder.stages.{s}.layers.{i}" for s, i in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]],
}
BERT_BLOCKS = ["text_model.encoder.layer.0", "text_model.encoder.layer.1"]


@pytest.mark.parametrize("family", list(BLOCKS))
def test_the_blocks_of_every_family(family, tiny, make_config) -> None:
    expected = BLOCKS[family] + (BERT_BLOCKS if tiny[family]["type"] == "dual_encoder" else [])
    assert [name for name, _ in repeated_blocks(build_contrastive_model(make_config(tiny[family])))] == expected


def gradients(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    """Gradients of one pass whose dropout is seeded."""
    torch.manual_seed(3)
    outputs = model(batch)
    sum((value * value.detach().sin()).sum() for value in outputs.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", list(BLOCKS))
def test_checkpointing_changes_neither_names_nor_gradients(family, tiny, make_config, batch) -> None:
    """With dropout on, gradients only agree if the recomputation replays the random state."""
    model = build_contrastive_model(make_config(tiny[family]))
    checkpointed = copy.deepcopy(model)
    checkpoint_activations(checkpointed)
    runs = []
    for _, block in repeated_blocks(checkpointed):
        block.register_forward_hook(lambda *_: runs.append("block"))
    expected, found = gradients(model, batch), gradients(checkpointed, batch)
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert len(runs) == len(repeated_blocks(model))


def test_checkpointed_blocks_really_run_again_in_the_backward_pass(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["vit"]))
    runs = []
    for _, block in repeated_blocks(model):
        attention = block.attention
        attention.register_forward_hook(lambda *_: runs.append("attention"))
    checkpoint_activations(model)
    outputs = model(batch)
    assert len(runs) == 4
    sum(value.sum() for value in outputs.values()).backward()
    assert len(runs) == 8
    with torch.no_grad():
        model(batch)
    assert len(runs) == 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, raised inside its tracing
def test_compiled_blocks_agree_and_keep_their_names(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["vit"])).eval()
    expected, names = model(batch)["image_features"], [name for name, _ in model.named_parameters()]
    compile_blocks(model)
    torch.testing.assert_close(model(batch)["image_features"], expected, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == names
