import pytest

from accel_train.config.load import load_config
from accel_train.optim.lr_scaling import scaling_in_words
from accel_train.tools.plan.run_plan import make_plan
from accel_train.tools.plan.tables import as_dict
from tests.short_runs import ROOT

SMALL = ROOT / "configs" / "small" / "dual_encoder_llrd.yaml"


def rates(*overrides: str) -> dict[str, float]:
    plan = as_dict(make_plan(load_config(SMALL, ["data.micro_batch_size=64", *overrides]), world_size=1))
    return {group["name"]: group["lr"] for group in plan["groups"]}


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("square_root", 2.0)])
def test_rates_of_every_group_grow_with_the_batch(rule: str, factor: float) -> None:
    """From 64 to 256 samples; groups keep their ratios."""
    scaling = [f"optimizer.lr_scaling.rule={rule}", "optimizer.lr_scaling.base_batch_size=64"]
    plain = rates("data.global_batch_size=256")
    assert rates("data.global_batch_size=256", *scaling) == pytest.approx({k: factor * v for k, v in plain.items()})
    assert rates("data.global_batch_size=64", *scaling) == pytest.approx(plain)


def test_it_is_said_aloud() -> None:
    scaling = ["optimizer.lr_scaling.rule=square_root", "optimizer.lr_scaling.base_batch_size=48"]
    optimizer = load_config(SMALL, scaling).optimizer
    assert scaling_in_words(optimizer, 12) == "every learning rate x 0.5: square root from a batch of 48 to 12"
    assert scaling_in_words(load_config(SMALL).optimizer, 12) is None


def test_a_phase_scales_its_own_rates_once() -> None:
    config = load_config(
        SMALL,
        [
            "data.global_batch_size=256",
            "data.micro_batch_size=64",
            "optimizer.lr_scaling.rule=linear",
            "optimizer.lr_scaling.base_batch_size=64",
            "phases=[{name: second, start: 1 epoch, towers: [{name: heads, lr: 0.5}]}]",
        ],
    )
    (phase,) = as_dict(make_plan(config, world_size=1))["phases"]
    assert {group["lr"] for group in phase["groups"] if group["tower"] == "heads"} == {2.0}
