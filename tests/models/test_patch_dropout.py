import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.models.blocks import checkpoint_activations
from accel_train.models.build import adapt_to_training, build_contrastive_model
from accel_train.models.dropout import install_per_sample_dropout, per_sample_masks
from accel_train.models.patch_dropout import PatchDropout, drop_patches

TOWERS = ["chinese_clip", "clip", "siglip", "vit", "deit", "dinov2", "dinov2_with_registers", "siglip_vision_model"]
LIKE = {"deit": "vit", "dinov2_with_registers": "dinov2", "siglip_vision_model": "vit"}
"""Towers that the section of another one describes as well."""
IDS = torch.tensor([11, 5, 70_000_000_000, 0, 3, 8])
PATCHES = 16


@pytest.fixture
def build(tiny, make_config):
    """A tiny model of a family without dropout, and with patch dropout where a ratio is given."""

    def make(family: str, ratio: float = 0.0) -> nn.Module:
        section: dict[str, Any] = copy.deepcopy(tiny[LIKE.get(family, family)])
        if "image" in section:
            section["image"]["architecture"] = family
            section["text"]["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        elif family == "chinese_clip":
            section["config"]["text_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        torch.manual_seed(0)
        model = build_contrastive_model(make_config(section))
        if ratio:
            drop_patches(model, ratio)
        return model

    return make


def tokens_in_blocks(model: nn.Module) -> list[int]:
    """Tokens that a block of the image tower gets, in every forward pass from now on."""
    seen: list[int] = []
    embeddings = model.get_submodule("vision_model.embeddings")
    embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    return seen


def features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    return model({"pixel_values": pixel_values})["image_features"]


@pytest.mark.parametrize("family", TOWERS)
def test_training_sees_a_share_of_the_patches_and_evaluation_all(family, build, batch) -> None:
    model = build(family, 0.75)
    first = {"siglip": 0, "siglip_vision_model": 0, "deit": 2, "dinov2_with_registers": 5}.get(family, 1)
    seen = tokens_in_blocks(model)
    assert features(model.train(), batch["pixel_values"]).isfinite().all()
    in_eval = features(model.eval(), batch["pixel_values"])
    assert seen == [first + PATCHES // 4, first + PATCHES]
    assert torch.equal(in_eval, features(build(family).eval(), batch["pixel_values"]))


@pytest.mark.parametrize("family", TOWERS)
def test_every_parameter_still_gets_a_gradient(family, build, batch) -> None:
    model = build(family, 0.5)
    model(batch)["image_features"].square()[:, 0].sum().backward()
    tower = model.get_submodule("vision_model")
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("num", "ratio", "kept"), [(196, 0.5, 98), (10, 0.7, 3), (10, 0.9, 1), (4, 0.99, 1), (9, 0.5, 4)]
)
def test_how_many_are_kept(num: int, ratio: float, kept: int) -> None:
    assert PatchDropout(ratio, 1)(torch.ones(2, 1 + num, 3)).shape == (2, 1 + kept, 3)


def test_what_is_kept_are_the_first_tokens_and_whole_patches_in_order() -> None:
    tokens = torch.arange(3.0 * 12).view(3, 12, 1).expand(3, 12, 4)
    kept = PatchDropout(0.5, 2)(tokens)
    assert torch.equal(kept[:, :2], tokens[:, :2])
    assert (kept[:, 1:, 0].diff(dim=1) > 0).all()
    assert (kept == kept[:, :, :1]).all()
    own = (kept[..., 0] - 12 * torch.arange(3.0)[:, None])[:, 2:]
    assert own.min() >= 2 and own.max() < 12
    assert len({tuple(row) for row in own.tolist()}) > 1


def test_every_patch_is_kept_equally_often() -> None:
    """2000 draws of a half: 0.07 is more than six standard errors."""
    for per_sample in (False, True):
        tokens = torch.arange(16.0).view(1, 16, 1).expand(2000, 16, 1)
        if per_sample:
            with per_sample_masks(torch.arange(2000), 7):
                kept = PatchDropout(0.5, 0)(tokens)
        else:
            kept = PatchDropout(0.5, 0)(tokens)
        counts = torch.bincount(kept.long().view(-1), minlength=16) / 2000
        assert (counts - 0.5).abs().max() < 0.07


@pytest.mark.parametrize("family", TOWERS)
def test_per_sample_masks_are_the_same_under_every_split(family, build, batch) -> None:
    model = build(family, 0.5)
    install_per_sample_dropout(model)
    found = []
    for parts in ([slice(0, 6)], [slice(0, 4), slice(4, 6)]):
        model.zero_grad()
        pieces = []
        for part in parts:
            with per_sample_masks(IDS[part], 9):
                pieces.append(features(model, batch["pixel_values"][part]))
                (pieces[-1] * torch.linspace(-1, 1, pieces[-1].shape[1])).sum().backward()
        gradients = [p.grad.clone() for p in model.get_submodule("vision_model").parameters()]
        found.append([torch.cat(pieces).detach(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    with per_sample_masks(IDS, 10):
        assert (features(model, batch["pixel_values"]) - found[0][0]).abs().max() > 1e-3


def test_the_torch_generator_repeats_masks(build, batch) -> None:
    model = build("vit", 0.5)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(features(model, batch["pixel_values"]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_activation_checkpointing_sees_the_same_patches(build, batch) -> None:
    plain, recomputed = build("chinese_clip", 0.5), build("chinese_clip", 0.5)
    checkpoint_activations(recomputed)
    for model in (plain, recomputed):
        torch.manual_seed(1)
        features(model, batch["pixel_values"])[:, 0].sum().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_a_copy_has_masks_of_its_own(build, batch) -> None:
    """`plan` measures activations on a copy."""
    model = build("vit", 0.5)
    duplicate = copy.deepcopy(model).eval()
    seen = tokens_in_blocks(duplicate)
    features(duplicate, batch["pixel_values"])
    assert seen == [1 + PATCHES]


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_towers_without_patches_are_refused(family, build) -> None:
    with pytest.raises(UserError, match=f"mask_ratio is 0.5, but the image tower is a {family}"):
        build(family, 0.5)


def test_a_frozen_image_tower_is_refused(build, tiny, make_config) -> None:
    model = build("chinese_clip")
    section = make_config(tiny["chinese_clip"] | {"mask_ratio": 0.5}).model
    frozen = [name for name, _ in model.named_parameters() if name.startswith("vision_model.")]
    adapt_to_training(copy.deepcopy(model), section, frozen[:-1])
    with pytest.raises(UserError, match=r"mask_ratio is 0.5, but the image tower is frozen"):
        adapt_to_training(model, section, frozen)


def test_frozen_embeddings_do_not_switch_it_off(build) -> None:
    model = build("vit", 0.5)
    model.get_submodule("vision_model.embeddings").eval()
    assert model.get_submodule("vision_model.patch_dropout").training
