"""What every engine refuses and what it measures, in one process without a process group."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from accel_train.engine.engine import Engine, run_in
from accel_train.engine.fsdp import FullyShardedDataParallel2
from accel_train.engine.launch import Launch
from accel_train.engine.plain import DataParallel
from accel_train.engine.zero import Zero
from accel_train.errors import UserError


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def launch_of(engine: str = "ddp", world_size: int = 1) -> Launch:
    return Launch(engine=engine, offload_optimizer=False, rank=0, local_rank=0, world_size=world_size)


@pytest.fixture
def engine(accelerator: Accelerator) -> Engine:
    return DataParallel(launch_of(), accelerator)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    group = {"name": "all", "tower": "all", "base_lr": 0.1, "weight_decay": 0.2, "max_grad_norm": None}
    return torch.optim.SGD([{"params": list(model.parameters()), **group}], lr=0.1)


def prepared(engine: Engine, model: nn.Module) -> nn.Module:
    return engine.prepare(model, optimizer_of(model), precision="fp32", block_classes=set())


def test_a_launcher_that_accelerate_does_not_see(accelerator: Accelerator) -> None:
    """On a CPU host every rank may believe to be alone: each would train on everything."""
    with pytest.raises(UserError, match=r"started rank 0 of 4, but Accelerate sees rank 0 of 1"):
        DataParallel(launch_of(world_size=4), accelerator)


def test_parameters_without_a_dimension(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"\['logit_scale'\]. Give them shape \(1,\)"):
        prepared(engine, Scalar())


def test_ddp_that_is_not_on(engine: Engine) -> None:
    engine.model, engine.world_size = nn.Linear(2, 2), 2
    with pytest.raises(UserError, match=r"engine ddp was asked for on 2 ranks, but the model is a Linear"):
        engine._check_active()


def test_fsdp2_that_is_not_on(accelerator: Accelerator) -> None:
    engine = FullyShardedDataParallel2(launch_of("fsdp2"), accelerator)
    engine.model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"fsdp2 was asked for, but 2 parameters are not sharded"):
        engine._check_active()


@pytest.mark.parametrize(
    "found",
    [
        {"zero_optimization_stage": 0},
        {"zero_optimization_stage": 3},
        {"gradient_clipping": 1.0},
        {"gradient_accumulation_steps": 4},
        {"dp_world_size": 2},
    ],
)
def test_zero_that_is_not_what_was_asked_for(found: dict[str, Any], accelerator: Accelerator) -> None:
    """DeepSpeed clips to 1.0 where nothing is said of clipping."""
    engine = Zero(launch_of("zero2"), accelerator)
    asked = {"zero_optimization_stage": 2, "gradient_clipping": 0.0, "gradient_accumulation_steps": 1}
    engine.deepspeed = deepspeed_with(asked | {"dp_world_size": 1})
    engine._check_active()
    engine.deepspeed = deepspeed_with(asked | {"dp_world_size": 1} | found)
    with pytest.raises(UserError, match="DeepSpeed runs with"):
        engine._check_active()


def deepspeed_with(values: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        **{name: lambda value=value: value for name, value in values.items() if name != "dp_world_size"},
        dp_world_size=values["dp_world_size"],
    )


class Forgetful(DataParallel):
    """Stands for a library that changes a group behind our back."""

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, block_classes: set[str]) -> None:
        super()._prepare(model, optimizer, block_classes)
        self.optimizer.param_groups[0]["weight_decay"] = 0.0


def test_groups_that_were_changed(accelerator: Accelerator) -> None:
    with pytest.raises(UserError, match=r"ddp changed \['weight_decay'\] of parameter group 0 \(all\)"):
        prepared(Forgetful(launch_of(), accelerator), nn.Linear(2, 2))


def test_norms_and_scaling_by_group(engine: Engine) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    shared = {"tower": "all", "base_lr": 0.1, "weight_decay": 0.0, "max_grad_norm": None}
    groups = [{"params": list(layer.parameters()), "name": str(index), **shared} for index, layer in enumerate(model)]
    engine.prepare(model, torch.optim.SGD(groups, lr=0.1), precision="fp32", block_classes=set())
    engine.backward(engine.model(torch.ones(4, 3)).sum())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    wanted = [torch.cat([g.flatten() for g in pair]).norm() for pair in (gradients[:2], gradients[2:])]
    assert engine.grad_norms().tolist() == pytest.approx([float(norm) for norm in wanted])
    engine.scale_gradients([1.0, 0.5])
    for parameter, before, factor in zip(model.parameters(), gradients, (1, 1, 0.5, 0.5), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, before * factor)


def test_the_loss_scale_goes_in_and_comes_out(engine: Engine) -> None:
    model = nn.Linear(3, 1)
    prepared(engine, model)
    engine.loss_scale = 256.0
    engine.backward(engine.model(torch.ones(1, 3)).sum())
    assert torch.equal(model.weight.grad, torch.full((1, 3), 256.0))
    engine.unscale()
    assert torch.equal(model.weight.grad, torch.ones(1, 3))


def test_discarded_gradients_change_nothing(engine: Engine) -> None:
    model = nn.Linear(3, 1)
    prepared(engine, model)
    before = model.weight.detach().clone()
    engine.backward(engine.model(torch.ones(1, 3)).sum())
    engine.discard_gradients()
    engine.step()
    assert torch.equal(model.weight, before)


class Doubling(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"product": batch["values"] @ batch["values"].T, "rows": torch.arange(len(batch["values"]))}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.0), ("bf16", 1e-2), ("fp16", 1e-3)])
def test_outputs_are_float32_whatever_they_were_computed_in(precision: str, error: float) -> None:
    model, values = Doubling(), torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    run_in(model, precision, "cpu")
    outputs = model({"values": values})
    assert outputs["product"].dtype == torch.float32
    assert outputs["rows"].dtype == torch.int64
    difference = float((outputs["product"] - values @ values.T).norm() / (values @ values.T).norm())
    assert difference <= error
    assert (difference > 0) == (precision != "fp32")
