import copy

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch_config
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, raised inside its tracing
def test_compiled_blocks_keep_less_for_the_backward_pass() -> None:
    """A fifth and more, for outputs of normalisations and of the activation function."""
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=256, num_attention_heads=2, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    by_default, ours = (bytes_kept(CLIPEncoderLayer(config), as_torch_does=which) for which in (True, False))
    assert ours < 0.8 * by_default


def bytes_kept(block: nn.Module, *, as_torch_does: bool) -> int:
    """Between the forward and the backward pass of a compiled block, beside its parameters."""
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch._dynamo.reset()
    compile_blocks(model)
    with (
        functorch_config.patch(ban_recompute_materialized_backward=as_torch_does),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = block(torch.randn(4, 50, 64, requires_grad=True), attention_mask=None)
    output.sum().backward()
    return sum(found.values())
