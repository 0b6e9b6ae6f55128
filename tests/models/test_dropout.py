import copy

import pytest
import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.models.blocks import checkpoint_activations, compile_blocks
from accel_train.models.build import build_contrastive_model
from accel_train.models.dropout import install_per_sample_dropout, per_sample_masks

IDS = torch.tensor([11, 5, 70_000_000_000, 0, 3, 8])
DROPPING = {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.3}


def masked(rate: float, ids: Tensor, key: int, shape: tuple[int, ...] = (64, 10)) -> Tensor:
    """What a lone dropout module makes of ones."""
    model = nn.Sequential(nn.Identity(), nn.Dropout(rate))
    install_per_sample_dropout(model)
    with per_sample_masks(ids, key):
        return model(torch.ones(len(ids), *shape))


def dropping_model(family: str, tiny, make_config) -> nn.Module:
    """A tiny model with dropout wherever its architecture has it."""
    section = copy.deepcopy(tiny[family])
    torch.manual_seed(0)
    if section["type"] != "dual_encoder":
        section["config"].setdefault("vision_config", {})["attention_dropout"] = 0.2
        if family == "chinese_clip":
            section["config"]["text_config"] |= DROPPING
        else:
            section["config"]["text_config"]["attention_dropout"] = 0.2
    else:
        section["text"]["config"] |= DROPPING
        section["image"]["config"] |= {"drop_path_rate": 0.4} if family in ("convnext", "dinov2") else DROPPING
    return build_contrastive_model(make_config(section))


def gradients(model: nn.Module, batch: dict[str, Tensor], parts: list[slice], key: int = 9) -> list[Tensor]:
    """Outputs over all rows, then the gradients of a sum over rows, the batch being cut into `parts`."""
    model.zero_grad()
    features = []
    for part in parts:
        with per_sample_masks(IDS[part], key):
            outputs = model({name: column[part] for name, column in batch.items()})
            both = torch.cat([outputs["image_features"], outputs["text_features"]], 1)
            (both * torch.linspace(-1, 1, both.shape[1])).sum().backward()
        features.append(both.detach())
    return [torch.cat(features), *(p.grad for p in model.parameters() if p.grad is not None)]


FAMILIES = ["chinese_clip", "clip", "siglip", "vit", "dinov2", "convnext"]
WHOLE, HALVES, SINGLE = [slice(0, 6)], [slice(0, 4), slice(4, 6)], [slice(i, i + 1) for i in range(6)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_split_of_a_batch_changes_nothing(family, tiny, make_config, batch) -> None:
    model = dropping_model(family, tiny, make_config)
    install_per_sample_dropout(model)
    whole = gradients(model, batch, WHOLE)
    for parts in (HALVES, SINGLE):
        for one, other in zip(whole, gradients(model, batch, parts), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_really_on_and_the_key_changes_it(family, tiny, make_config, batch) -> None:
    model = dropping_model(family, tiny, make_config)
    install_per_sample_dropout(model)
    features, again, other = (gradients(model, batch, WHOLE, key)[0] for key in (1, 1, 2))
    assert torch.equal(features, again)
    assert (features - other).abs().max() > 1e-3
    model.eval()
    assert (features - torch.cat([v for k, v in model(batch).items() if "features" in k], 1)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_gives_the_same_gradients(family, tiny, make_config, batch) -> None:
    """The recomputed masks must be those of the first pass: dropout modules that run twice in a block included."""
    plain = dropping_model(family, tiny, make_config)
    install_per_sample_dropout(plain)
    checkpointed = dropping_model(family, tiny, make_config)
    install_per_sample_dropout(checkpointed)
    checkpoint_activations(checkpointed)
    for one, other in zip(gradients(plain, batch, WHOLE), gradients(checkpointed, batch, WHOLE), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_it_is_the_model_itself(family, tiny, make_config, batch) -> None:
    """The written-out attention and the routing change nothing but the masks."""
    model = dropping_model(family, tiny, make_config).eval()
    expected = model(batch)
    install_per_sample_dropout(model)
    for name, value in model(batch).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float) -> None:
    values = masked(rate, torch.arange(200), key=4)
    assert (values == 0).double().mean().item() == pytest.approx(
        rate, abs=4 * (rate * (1 - rate) / values.numel()) ** 0.5
    )
    torch.testing.assert_close(values[values != 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_masks_of_samples_keys_and_modules_are_unrelated() -> None:
    """Correlations of masks over 50,000 elements: a deviation of 0.02 would be more than four standard errors."""
    wide = (50_000,)
    first, second = masked(0.5, torch.tensor([1, 2]), 0, wide)
    other_key = masked(0.5, torch.tensor([1]), 1, wide)[0]
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5))
    install_per_sample_dropout(model)
    with per_sample_masks(torch.tensor([1]), 0):
        modules = [model[0](torch.ones(1, *wide))[0], model[2](torch.ones(1, *wide))[0]]
    masks = torch.stack([first, second, other_key, *modules, first.roll(1)])
    correlations = torch.corrcoef(masks) - torch.eye(len(masks))
    assert correlations.abs().max() < 0.02


def test_two_calls_of_one_module_differ() -> None:
    """ViT drops after attention and after the MLP with one module."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, values: Tensor) -> Tensor:
            return torch.stack([self.dropout(values), self.dropout(values)])

    model = Twice()
    install_per_sample_dropout(model)
    for _ in range(2):  # a second forward starts counting anew
        with per_sample_masks(IDS, 3):
            first, second = model(torch.ones(6, 100))
        assert not torch.equal(first, second)
    with per_sample_masks(IDS, 3):
        assert torch.equal(model(torch.ones(6, 100))[0], first)


def test_drop_path_drops_whole_samples(tiny, make_config) -> None:
    model = dropping_model("convnext", tiny, make_config)
    install_per_sample_dropout(model)
    path = model.vision_model.encoder.stages[3].layers[0].drop_path
    with per_sample_masks(torch.arange(1000), 5):
        values = path(torch.ones(1000, 2, 3, 3))
    per_sample = values.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert (per_sample[:, 0] == 0).double().mean().item() == pytest.approx(0.4, abs=0.06)


def test_large_and_negative_keys_are_taken() -> None:
    results = [masked(0.5, IDS, key) for key in (2**64 - 1, -1, 2**200 + 7, 7)]
    assert torch.equal(results[0], results[1])  # the same low 64 bits
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[2])


def test_dropout_outside_the_context_is_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    install_per_sample_dropout(model)
    with pytest.raises(RuntimeError, match="no per_sample_masks are in force"):
        model(torch.ones(2, 2))
    assert torch.equal(model.eval()(torch.ones(2, 2)), torch.ones(2, 2))


def test_a_wrong_number_of_rows_is_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    install_per_sample_dropout(model)
    with per_sample_masks(IDS, 0), pytest.raises(RuntimeError, match="2 rows for 6 samples"):
        model(torch.ones(2, 2))


@pytest.mark.parametrize("module", [nn.Dropout2d(0.1), nn.AlphaDropout(0.1), nn.MultiheadAttention(4, 2, dropout=0.1)])
def test_random_modules_that_can_not_be_keyed_are_refused(module: nn.Module) -> None:
    with pytest.raises(UserError, match=f"inner is a {type(module).__name__}"):
        install_per_sample_dropout(nn.ModuleDict({"inner": module}))


def test_hidden_randomness_is_noticed() -> None:
    class Noisy(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return nn.functional.dropout(values, 0.5)

    model = Noisy()
    install_per_sample_dropout(model)
    with pytest.raises(RuntimeError, match="torch's own generator"), per_sample_masks(IDS, 0):
        model(torch.ones(6, 2))


def test_it_must_come_before_activation_checkpointing(tiny, make_config) -> None:
    model = dropping_model("vit", tiny, make_config)
    checkpoint_activations(model)
    with pytest.raises(RuntimeError, match="before activation checkpointing"):
        install_per_sample_dropout(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, raised inside its tracing
def test_compiled_blocks_draw_the_same_masks(tiny, make_config, batch) -> None:
    plain, compiled = (dropping_model("vit", tiny, make_config) for _ in range(2))
    for model in (plain, compiled):
        install_per_sample_dropout(model)
    compile_blocks(compiled.text_model)
    for key in (1, 2):
        for one, other in zip(gradients(plain, batch, WHOLE, key), gradients(compiled, batch, WHOLE, key), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
