"""Promise 2: what `plan` prints for a parameter group is what each engine applies to it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from accel_train.config.schema import RunConfig
from accel_train.tools.plan.run_plan import make_plan
from accel_train.tools.plan.tables import as_dict
from tests.distributed.closeness import worst_difference
from tests.distributed.conftest import Observation, Observed
from tests.distributed.reference import Reference
from tests.distributed.scenarios import ENGINES, LR_SCALES, WHOLE_ENGINES

Configured = Callable[[str], RunConfig]
Trained = Callable[..., Reference]


@pytest.fixture(scope="session")
def planned(configured: Configured) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = as_dict(make_plan(configured("llrd"), world_size=1))["groups"]
    return groups


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_read_back_equal_the_plan(engine: str, observed: Observed, planned: list[dict[str, Any]]) -> None:
    found = observed(engine, 2, "llrd@2").found["groups"]
    assert len(found) == len(planned) > 10
    for group, plan in zip(found, planned, strict=True):
        assert group["name"] == plan["name"]
        assert group["tower"] == plan["tower"]
        assert group["base_lr"] == plan["lr"]
        assert group["weight_decay"] == plan["weight_decay"]
        assert group["max_grad_norm"] == plan["max_grad_norm"]


@pytest.mark.parametrize("engine", ENGINES)
def test_learning_rates_of_every_step(engine: str, observed: Observed, planned: list[dict[str, Any]]) -> None:
    metrics = observed(engine, 2, "llrd@2").metrics
    assert len(metrics) == len(LR_SCALES)
    for line, scale in zip(metrics, LR_SCALES, strict=True):
        logged = {key.removeprefix("lr/"): value for key, value in line.items() if key.startswith("lr/")}
        assert logged == pytest.approx({group["name"]: group["lr"] * scale for group in planned})


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
@pytest.mark.parametrize("scenario", ["texts", "scored", "aligned", "captioned"])
def test_groups_of_every_task(
    scenario: str, engine: str, observed: Observed, configured: Configured, reference: Trained
) -> None:
    """What `plan` says of the other tasks is what was applied, and each group's gradient norm that of the whole batch."""
    plan = make_plan(configured(scenario), world_size=1)
    observation = observed(engine, 2, f"{scenario}@2")
    keys = ("name", "base_lr", "weight_decay", "max_grad_norm")
    found = [tuple(group[key] for key in keys) for group in observation.found["groups"]]
    assert found == [(group.name, group.lr, group.weight_decay, group.max_grad_norm) for group in plan.groups[0].groups]
    for step, (line, wanted) in enumerate(zip(observation.metrics, reference(scenario).group_norms, strict=True)):
        for group in plan.groups[0].groups:
            assert line[f"lr/{group.name}"] == pytest.approx(group.lr * plan.phases[0].lr_scale(step))
            assert line[f"grad_norm/{group.name}"] == pytest.approx(wanted[group.name], rel=1e-4, abs=1e-6)


def test_layer_decay_written_out(planned: list[dict[str, Any]]) -> None:
    """ConvNeXt with stages of one and two blocks, decay 0.75; BERT with two blocks, decay 0.9, embeddings frozen."""
    rates = {group["name"].removesuffix(".no_decay"): group["lr"] for group in planned}
    image = {f"image.{layer:02d}": 0.2 * 0.75 ** (4 - layer) for layer in range(5)}
    text = {"text.01": 0.3 * 0.9, "text.02": 0.3}
    rest = {"pooling": 0.3, "heads": 0.5, "temperature": 0.05}
    assert rates == pytest.approx(image | text | rest)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_norm_of_each_group_at_every_step(engine: str, observed: Observed, reference: Trained) -> None:
    """Over all ranks and before clipping."""
    for line, wanted in zip(observed(engine, 2, "llrd@2").metrics, reference("llrd").group_norms, strict=True):
        logged = {key.removeprefix("grad_norm/"): value for key, value in line.items() if key.startswith("grad_norm/")}
        assert logged == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert line["grad_norm"] == pytest.approx(math.hypot(*wanted.values()), rel=1e-5)


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_clipping_one_tower_leaves_the_others_alone(engine: str, observed: Observed, reference: Trained) -> None:
    free, clipped = (observed(engine, 2, run) for run in ("one_step@2", "one_step_text_clipped@2"))
    assert norm_of(free, "text") == norm_of(clipped, "text") > 1e-2  # so a limit of 1e-3 does something
    for name, weight in free.weights.items():
        if not name.startswith("text_model."):
            assert torch.equal(clipped.weights[name], weight), name
    assert worst_difference(clipped.weights, free.weights)[0] > 1e-3
    assert worst_difference(clipped.weights, reference("one_step_text_clipped").weights[-1])[0] < 1e-6


def norm_of(observation: Observation, tower: str) -> float:
    (line,) = observation.metrics
    return math.hypot(*(value for key, value in line.items() if key.startswith(f"grad_norm/{tower}.")))


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_frozen_layers_stand_still_without_dropout(engine: str, observed: Observed, reference: Trained) -> None:
    """The image tower is frozen, and all but the last layer of the text tower."""
    observation, wanted = observed(engine, 2, "frozen_layers@2"), reference("frozen_layers", 4)
    assert observation.losses == pytest.approx(wanted.losses, abs=1e-5)
    assert worst_difference(observation.weights, wanted.weights[-1])[0] < 1e-5
    frozen = ("vision_model.", "text_model.embeddings.", "text_model.encoder.layer.0.")
    for name, weight in observation.weights.items():
        assert torch.equal(weight, wanted.start[name]) == name.startswith(frozen), name
        assert (name in observation.found["gradients"]) == (not name.startswith(frozen)), name
    for name, training in observation.found["training"].items():
        if name.endswith("dropout"):
            assert training == name.startswith("text_model.encoder.layer.1."), name


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_frozen_batch_norm_keeps_its_statistics(engine: str, observed: Observed) -> None:
    found = observed(engine, 2, "frozen_resnet@2").found
    before, after = found["buffers_before"], found["buffers"]
    statistics = [name for name in before if name.endswith("running_mean")]
    assert statistics
    for name, buffer in before.items():
        assert torch.equal(after[name], buffer), name
    assert not any(found["training"][name.rpartition(".")[0]] for name in statistics)
