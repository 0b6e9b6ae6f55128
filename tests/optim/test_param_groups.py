from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from accel_train.config.schema import OptimizerSection, Tower
from accel_train.errors import UserError
from accel_train.optim.param_groups import GroupPlan, freeze, plan_groups, set_train_mode


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)


class Toy(nn.Module):
    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([Block() for _ in range(num_blocks)])
        self.head = nn.Linear(4, 2)
        self.logit_scale = nn.Parameter(torch.zeros(1))


TRUNK = [r"^embedding", r"^blocks\.(\d+)\."]


def section(trunk: dict[str, Any] | None = None, **values: Any) -> OptimizerSection:
    towers = [
        Tower(name="trunk", layers=TRUNK, **{"lr": 1.0, **(trunk or {})}),
        Tower(name="head", layers=["^head"], lr=2.0, max_grad_norm=0.5),
        Tower(name="temperature", layers=["^logit_scale$"], lr=3.0),
    ]
    return OptimizerSection(**{"weight_decay": 0.1, "towers": towers, **values})


def every_name(plan: GroupPlan) -> list[str]:
    return [name for group in plan.groups for name in group.param_names] + list(plan.frozen)


def test_groups_of_a_ladder() -> None:
    plan = plan_groups(Toy(), section({"layer_decay": 0.5}))
    assert [(group.name, group.layer, group.lr, group.weight_decay) for group in plan.groups] == [
        ("trunk.00", 0, 0.125, 0.1),
        ("trunk.01", 1, 0.25, 0.1),
        ("trunk.01.no_decay", 1, 0.25, 0.0),
        ("trunk.02", 2, 0.5, 0.1),
        ("trunk.02.no_decay", 2, 0.5, 0.0),
        ("trunk.03", 3, 1.0, 0.1),
        ("trunk.03.no_decay", 3, 1.0, 0.0),
        ("head", 0, 2.0, 0.1),
        ("head.no_decay", 0, 2.0, 0.0),
        ("temperature", 0, 3.0, 0.0),
    ]
    assert {group.tower: group.max_grad_norm for group in plan.groups} == {
        "trunk": None,
        "head": 0.5,
        "temperature": None,
    }
    assert plan.groups[1].param_names == ("blocks.0.linear.weight",)
    assert plan.groups[1].num_parameters == 16
    assert plan.frozen == ()


def test_one_rate_makes_one_group() -> None:
    names = [group.name for group in plan_groups(Toy(), section()).groups]
    assert names == ["trunk", "trunk.no_decay", "head", "head.no_decay", "temperature"]


def test_no_weight_decay_needs_no_second_group() -> None:
    names = [group.name for group in plan_groups(Toy(), section(weight_decay=0.0)).groups]
    assert names == ["trunk", "head", "temperature"]


def test_tower_overrides_weight_decay() -> None:
    plan = plan_groups(Toy(), section({"weight_decay": 0.3}))
    assert {group.name: group.weight_decay for group in plan.groups}["trunk"] == 0.3


def test_train_last_freezes_from_the_input() -> None:
    plan = plan_groups(Toy(), section({"train_last": 2, "layer_decay": 0.5}))
    assert {name.split(".")[1] for name in plan.frozen if name.startswith("blocks")} == {"0"}
    assert "embedding.weight" in plan.frozen
    assert [group.lr for group in plan.groups if group.name.startswith("trunk")] == [0.5, 0.5, 1.0, 1.0]


def test_lr_zero_freezes() -> None:
    plan = plan_groups(Toy(), section({"lr": 0.0}))
    assert {group.tower for group in plan.groups} == {"head", "temperature"}
    assert [(part.tower, len(part.param_names), part.num_parameters) for part in plan.frozen_parts] == [
        ("trunk", 13, 20 + 3 * (4 + 4 + 16 + 4))
    ]


def test_parameter_without_gradient_stays_frozen() -> None:
    model = Toy()
    model.logit_scale.requires_grad_(False)
    plan = plan_groups(model, section())
    assert plan.frozen == ("logit_scale",)
    assert "temperature" not in {group.tower for group in plan.groups}
    without_tower = section(towers=section().towers[:2])
    assert [(part.tower, part.param_names) for part in plan_groups(model, without_tower).frozen_parts] == [
        (None, ("logit_scale",))
    ]


def test_a_tower_for_a_buffer_is_no_error() -> None:
    """Where the temperature isn't learnt the model holds it as a buffer, and the tower may stay in the configuration."""
    model = Toy()
    del model.logit_scale
    model.register_buffer("logit_scale", torch.zeros(1))
    plan = plan_groups(model, section())
    assert {group.tower for group in plan.groups} == {"trunk", "head"}
    assert plan.frozen == ()


def test_no_decay_layers() -> None:
    plan = plan_groups(Toy(), section(no_decay_layers=["^embedding", r"blocks\.1\.linear"]))
    exempt = {name for group in plan.groups if group.weight_decay == 0 for name in group.param_names}
    assert {"embedding.weight", "blocks.1.linear.weight"} <= exempt
    assert "blocks.0.linear.weight" not in exempt


def test_no_decay_none() -> None:
    assert {group.weight_decay for group in plan_groups(Toy(), section(no_decay="none")).groups} == {0.1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (section({"train_last": 5}), r"trunk\.train_last is 5, but the tower has 4 layers"),
        (section(no_decay_layers=["^embeding"]), r"no_decay_layers: '\^embeding' matches no parameter"),
        (section(towers=[Tower(name="all", layers=["."], lr=0.0)]), "all parameters are frozen"),
        (section(no_decay="chinese_clip"), "'embedding.weight' is not a parameter of a chinese_clip model"),
    ],
)
def test_what_cannot_be_planned(config: OptimizerSection, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_groups(Toy(), config)


def test_emptied_shapes_are_refused() -> None:
    """ZeRO-3 empties shapes, and every weight would count as a vector."""
    model = Toy()
    model.head.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"'head\.weight' is empty"):
        plan_groups(model, section())


def test_the_meta_device_gives_the_same_plan() -> None:
    with torch.device("meta"):
        model = Toy()
    assert plan_groups(model, section({"layer_decay": 0.7})) == plan_groups(Toy(), section({"layer_decay": 0.7}))


@given(
    num_blocks=st.integers(1, 12),
    layer_decay=st.floats(0.3, 1.0),
    train_last=st.none() | st.integers(1, 13),
    no_decay=st.sampled_from(["vectors", "none"]),
)
def test_each_parameter_is_in_exactly_one_place(
    num_blocks: int, layer_decay: float, train_last: int | None, no_decay: str
) -> None:
    with torch.device("meta"):
        model = Toy(num_blocks)
    train_last = train_last and min(train_last, num_blocks + 1)
    plan = plan_groups(model, section({"layer_decay": layer_decay, "train_last": train_last}, no_decay=no_decay))
    assert sorted(every_name(plan)) == sorted(name for name, _ in model.named_parameters())
    assert len({group.name for group in plan.groups}) == len(plan.groups)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for group in plan.groups:
        assert group.num_parameters == sum(sizes[name] for name in group.param_names) > 0
        if group.tower == "trunk":
            blocks_above = {num_blocks - 1 - int(n.split(".")[1]) for n in group.param_names if n.startswith("blocks")}
            above = max(blocks_above, default=num_blocks) if layer_decay < 1 else 0
            assert group.lr == pytest.approx(layer_decay**above)


def test_freeze_sets_requires_grad() -> None:
    model = Toy()
    plan = plan_groups(model, section({"train_last": 1}))
    freeze(model, plan)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == set(plan.frozen)
    freeze(model, GroupPlan(plan.groups, []))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_blocks_stay_in_eval_mode() -> None:
    model = Toy().eval()
    freeze(model, plan_groups(model, section({"train_last": 2})))
    set_train_mode(model)
    in_train_mode = {name for name, module in model.named_modules() if module.training}
    assert in_train_mode == {
        "", "blocks", "head",
        "blocks.1", "blocks.1.norm", "blocks.1.linear", "blocks.1.dropout",
        "blocks.2", "blocks.2.norm", "blocks.2.linear", "blocks.2.dropout",
    }  # fmt: skip


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    model = Toy()
    freeze(model, plan_groups(model, section({"train_last": 1})))
    set_train_mode(model)
    for block in model.blocks:
        block.norm(torch.randn(8, 4))
    assert [int(block.norm.num_batches_tracked) for block in model.blocks] == [0, 0, 1]


def test_a_frozen_module_alone_inside_a_trained_one_is_in_eval_mode() -> None:
    model = Toy()
    for parameter in model.blocks[0].norm.parameters():
        parameter.requires_grad_(False)
    set_train_mode(model)
    assert not model.blocks[0].norm.training
    assert model.blocks[0].dropout.training
