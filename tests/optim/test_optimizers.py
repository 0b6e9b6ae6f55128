import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from accel_train.config.schema import OptimizerSection, Tower
from accel_train.optim.lion import Lion
from accel_train.optim.optimizers import STATE_NAMES, make_optimizer, state_names
from accel_train.optim.param_groups import plan_groups

TOWERS = [
    Tower(name="body", layers=[r"^(\d+)\."], lr=0.01, layer_decay=0.5, max_grad_norm=1.0),
]


def section(name: str, **values: object) -> OptimizerSection:
    return OptimizerSection.model_validate({"name": name, "weight_decay": 0.1, "towers": TOWERS, **values})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion"])
def test_groups_carry_what_was_planned(name: str) -> None:
    model = small_model()
    plan = plan_groups(model, section(name))
    optimizer = make_optimizer(model, plan, section(name), fused=False)
    parameters = dict(model.named_parameters())
    assert len(optimizer.param_groups) == len(plan.groups) == 4
    for group, planned in zip(optimizer.param_groups, plan.groups, strict=True):
        assert [id(param) for param in group["params"]] == [id(parameters[n]) for n in planned.param_names]
        assert (group["name"], group["tower"]) == (planned.name, planned.tower)
        assert group["lr"] == group["base_lr"] == planned.lr
        assert group["weight_decay"] == planned.weight_decay
        assert group["max_grad_norm"] == planned.max_grad_norm == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_names_are_the_tensors_kept(name: str, momentum: float) -> None:
    model = small_model()
    config = section(name, momentum=momentum)
    optimizer = make_optimizer(model, plan_groups(model, config), config, fused=False)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    for param in model.parameters():
        kept = {
            key
            for key, value in optimizer.state[param].items()
            if isinstance(value, Tensor) and value.shape == param.shape
        }
        assert kept == set(state_names(config))
    if name != "sgd":
        assert state_names(config) == STATE_NAMES[name]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_gives_the_same_weights(name: str) -> None:
    results = []
    for fused in (False, True):
        model = small_model()
        config = section(name, momentum=0.9)
        optimizer = make_optimizer(model, plan_groups(model, config), config, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for step in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
        results.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def naive_lion(weight: Tensor, grads: list[Tensor], lr: float, betas: tuple[float, float], decay: float) -> Tensor:
    """Algorithm 2 of the paper, one number at a time."""
    values = weight.flatten().tolist()
    momenta = [0.0] * len(values)
    for grad in grads:
        for index, g in enumerate(grad.flatten().tolist()):
            c = betas[0] * momenta[index] + (1 - betas[0]) * g
            sign = (c > 0) - (c < 0)
            values[index] -= lr * (sign + decay * values[index])
            momenta[index] = betas[1] * momenta[index] + (1 - betas[1]) * g
    return torch.tensor(values, dtype=weight.dtype).view_as(weight)


def test_lion_against_the_paper() -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    start = weight.detach().clone()
    grads = [torch.randn(4, 3, dtype=torch.float64) for _ in range(6)]
    grads[2][0] = 0.0
    optimizer = Lion([{"params": [weight]}], lr=0.05, betas=(0.9, 0.6), weight_decay=0.2)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), naive_lion(start, grads, 0.05, (0.9, 0.6), 0.2))


def test_lion_passes_over_parameters_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lion([{"params": [used, unused]}], lr=0.5, betas=(0.9, 0.99), weight_decay=0.1)
    used.grad = torch.ones(2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() == pytest.approx([0.45, 0.45])


def test_lion_updates_sharded_weights() -> None:
    """FSDP2's parameters are DTensors, which lack some list operations."""
    results = []
    for sharded in (False, True):
        model = small_model()
        if sharded:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            fully_shard(model)
        optimizer = Lion([{"params": list(model.parameters())}], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
        for _ in range(2):
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        weights = [param.full_tensor() if isinstance(param, DTensor) else param for param in model.parameters()]
        assert isinstance(next(model.parameters()), DTensor) == sharded
        results.append(torch.cat([weight.detach().flatten() for weight in weights]))
    dist.destroy_process_group()
    assert torch.equal(*results)


def test_lion_resumes_from_its_state() -> None:
    def run(optimizer: Lion, weight: nn.Parameter, steps: range) -> None:
        for step in steps:
            weight.grad = torch.tensor([1.0, -2.0]) * (-1) ** step
            optimizer.step()

    def fresh() -> tuple[nn.Parameter, Lion]:
        weight = nn.Parameter(torch.ones(2))
        return weight, Lion([{"params": [weight]}], lr=0.1, betas=(0.9, 0.5))

    whole, whole_optimizer = fresh()
    run(whole_optimizer, whole, range(5))
    first, first_optimizer = fresh()
    run(first_optimizer, first, range(2))
    second, second_optimizer = fresh()
    second.data.copy_(first.data)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    run(second_optimizer, second, range(2, 5))
    assert torch.equal(whole, second)
