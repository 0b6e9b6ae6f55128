"""Scores from a CLIP: what they start from, what they are made of, and that every parameter learns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from accel_train.config.scorer import ScorerConfig
from accel_train.errors import UserError
from accel_train.models.contrastive_model import layer_statistics
from accel_train.models.refinement import Refinement
from accel_train.models.scorer import Scorer, build_scorer

REFINED: dict[str, Any] = {"residual": None, "refinement": {"num_layers": 2, "num_heads": 2, "width": 16}}
HEADS: dict[str, dict[str, Any]] = {
    "residual": {},
    "layers": {"quality_layers": 2},
    "refinement": REFINED,
    "neither": {"residual": None},
}
Make = Callable[..., Scorer]


@pytest.fixture
def scorer(tiny: dict[str, Any]) -> Make:
    def make(family: str = "convnext", explained: bool = True, **model: Any) -> Scorer:
        torch.manual_seed(0)
        config = ScorerConfig.model_validate(
            {
                "run_dir": "runs/test",
                "task": "scorer",
                "max_steps": 1,
                "model": {"clip": tiny[family]} | model,
                "loss": {"explanation_weight": 0.1 if explained else 0.0},
                "data": {
                    "path": "data",
                    "tokenizer": "vocab.txt",
                    "image_size": 32,
                    "max_text_length": 12,
                    "global_batch_size": 6,
                    "micro_batch_size": 6,
                },
                "optimizer": {"towers": [{"name": "all", "layers": [".*"], "lr": 1e-3}]},
            }
        )
        return build_scorer(config)

    return make


@pytest.fixture
def explained(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    flipped = {"explanation_ids": batch["input_ids"].flip(0), "explanation_mask": batch["attention_mask"].flip(0)}
    return batch | flipped


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("family", ["convnext", "vit", "chinese_clip", "clip", "siglip"])
def test_every_parameter_gets_a_gradient(scorer: Make, explained: dict[str, Tensor], family: str, heads: str) -> None:
    model = scorer(family, **HEADS[heads])
    for name, parameter in model.named_parameters():
        if "head.4" in name:  # heads that start as zeros hide what is below them
            torch.nn.init.normal_(parameter)
    outputs = model(explained)
    assert outputs["quality"].shape == outputs["consistency"].shape == (6,)
    loss = outputs["quality"].square().sum() + outputs["consistency"].square().sum()
    loss = loss + ((outputs["pair_features"] @ outputs["explanation_features"].T * outputs["logit_scale"]).exp()).sum()
    loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_without_explanations_the_temperature_is_no_parameter(scorer: Make, batch: dict[str, Tensor]) -> None:
    model = scorer(explained=False)
    assert set(model(batch)) == {"quality", "consistency"}
    assert "clip.logit_scale" in dict(model.named_buffers())
    assert "clip.logit_scale" not in dict(model.named_parameters())


@pytest.mark.parametrize("heads", ["residual", "layers"])
def test_residual_learning_starts_from_similarity_and_no_opinion(
    scorer: Make, batch: dict[str, Tensor], heads: str
) -> None:
    model = scorer(**HEADS[heads]).eval()
    found, outputs = model.clip(batch), model(batch)
    cosine = (found["image_features"] * found["text_features"]).sum(1)
    torch.testing.assert_close(outputs["consistency"], cosine)
    torch.testing.assert_close(outputs["quality"], torch.full((6,), 0.5))


def test_scales_multiply_the_correction(scorer: Make, batch: dict[str, Tensor]) -> None:
    scores = []
    for scale in (0.1, 0.3):
        model = scorer(residual={"scale_quality": scale, "scale_consistency": 2 * scale}).eval()
        for head in (model.quality_head, model.consistency_head):
            torch.nn.init.normal_(head[-1].weight, generator=torch.Generator().manual_seed(1))
        scores.append((model(batch), model.clip(batch)))
    (small, clip), (large, _) = scores
    cosine = (clip["image_features"] * clip["text_features"]).sum(1)
    torch.testing.assert_close((small["quality"] - 0.5) * 3, large["quality"] - 0.5)
    torch.testing.assert_close((small["consistency"] - cosine) * 3, large["consistency"] - cosine)


def test_neither_is_similarity_from_0_to_1(scorer: Make, batch: dict[str, Tensor]) -> None:
    model = scorer(residual=None, explained=False).eval()
    found, outputs = model.clip(batch), model(batch)
    cosine = (found["image_features"] * found["text_features"]).sum(1)
    torch.testing.assert_close(outputs["quality"], (1 + cosine) / 2)
    torch.testing.assert_close(outputs["consistency"], (1 + cosine) / 2)
    assert all(name.startswith("clip.") for name, _ in model.named_parameters())


def test_names_of_clip_are_its_own_behind_the_prefix(scorer: Make) -> None:
    model = scorer("chinese_clip", **REFINED)
    names = {name.removeprefix("clip.") for name, _ in model.named_parameters() if name.startswith("clip.")}
    assert names == {name for name, _ in model.clip.named_parameters()}
    assert "vision_model.encoder.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("heads", ["residual", "layers", "refinement"])
def test_a_row_does_not_see_its_batch(scorer: Make, explained: dict[str, Tensor], heads: str) -> None:
    model = scorer("vit", **HEADS[heads]).eval()
    for name, parameter in model.named_parameters():
        if "head.4" in name:
            torch.nn.init.normal_(parameter)
    whole = model(explained)
    part = model({name: column[2:4] for name, column in explained.items()})
    for name in ("quality", "consistency", "pair_features", "explanation_features"):
        torch.testing.assert_close(part[name], whole[name][2:4], rtol=1e-4, atol=1e-5)


def test_padding_of_a_prompt_is_not_read_by_the_refinement(scorer: Make, batch: dict[str, Tensor]) -> None:
    model = scorer("vit", explained=False, **REFINED).eval()
    shorter = {name: column[:, :7] if column.ndim == 2 else column for name, column in batch.items()}
    rows = [1, 2, 5]  # of 4, 7 and 3 tokens
    torch.testing.assert_close(
        model({name: column[rows] for name, column in shorter.items()})["quality"],
        model({name: column[rows] for name, column in batch.items()})["quality"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_refinement_reads_two_tokens_of_its_own(scorer: Make, batch: dict[str, Tensor]) -> None:
    model = scorer("convnext", **REFINED).eval()
    assert isinstance(model.refinement, Refinement)
    found = model.clip(batch, with_tokens=True)
    assert found["image_tokens"].shape[0] == 6 and found["text_tokens"].shape[:2] == (6, 12)
    quality, consistency = model.refinement(found, batch["attention_mask"])
    assert quality.shape == consistency.shape == (6, 16)
    assert not torch.allclose(quality, consistency)


def test_statistics_of_layers() -> None:
    maps, tokens = torch.randn(2, 5, 3, 4), torch.randn(2, 7, 6)
    found = layer_statistics([maps, tokens])
    down, right = (maps[:, :, 1:] - maps[:, :, :-1]).abs(), (maps[..., 1:] - maps[..., :-1]).abs()
    parts = [
        maps.mean((2, 3)),
        maps.flatten(2).std(2, correction=0),
        maps.amin((2, 3)),
        maps.amax((2, 3)),
        (down.sum((2, 3)) + right.sum((2, 3))) / (2 * 4 + 3 * 3),
        tokens.mean(1),
        tokens.std(1, correction=0),
        tokens.min(1).values,
        tokens.max(1).values,
        (tokens[:, 1:] - tokens[:, :-1]).abs().mean(1),
    ]
    wanted = torch.cat([layer_norm(part, part.shape[1:]) for part in parts], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_statistics_of_a_constant_image_have_a_gradient() -> None:
    maps = torch.ones(2, 5, 3, 4, requires_grad=True)
    layer_statistics([maps]).sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all()


@pytest.mark.parametrize("heads", ["layers", "refinement"])
def test_a_tower_that_pools_out_of_sight_is_refused(scorer: Make, tiny: dict[str, Any], heads: str) -> None:
    own = {"type": "chinese_clip", "size": "tiny_resnet", "batch_norm": "frozen"}
    tiny = tiny | {"resnet_clip": own | {"config": {"text_config": {"vocab_size": 100}}}}
    with pytest.raises(UserError, match="model.quality_layers" if heads == "layers" else "model.refinement"):
        scorer(clip=tiny["resnet_clip"], **HEADS[heads])


def test_on_the_meta_device_it_has_shapes_alone(scorer: Make) -> None:
    with torch.device("meta"):
        model = scorer("vit", quality_layers=2)
    assert all(parameter.is_meta for parameter in model.parameters())
