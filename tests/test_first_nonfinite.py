"""Hooks find the innermost module that was the first to give, or to pass back, what is not finite."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from accel_train.first_nonfinite import WHOLE_MODEL, Sighting, Watch, watching


class Bad(torch.autograd.Function):
    """Gives its input on, and a gradient that is not a number."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class Culprit(nn.Module):
    def __init__(self, forward: bool, backward: bool, row: int | None = None) -> None:
        super().__init__()
        self.wrong = forward, backward
        self.row = row

    def forward(self, values: Tensor) -> Tensor:
        forward, backward = self.wrong
        if forward:
            factor = torch.ones(len(values), 1)
            factor[slice(None) if self.row is None else self.row] = torch.nan
            values = values * factor
        return Bad.apply(values) if backward else values


class RootOfNegative(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return (-1 - values.square()).sqrt()


class Residual(nn.Module):
    """As in a transformer: what it takes goes to its first module and past it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = inner

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"values": values + self.inner(self.norm(values))}


class Model(nn.Module):
    def __init__(self, culprit: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = Residual(nn.Sequential(nn.Linear(4, 4), culprit, nn.Linear(4, 4)))
        self.last = nn.Linear(4, 1)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"out": self.last(self.block(self.first(values))["values"])}


def seen(model: nn.Module, loss: Callable[[Tensor], Tensor] = lambda out: out.square().mean()) -> Sighting:
    with watching(model, rank=3) as watch:
        watch.micro_batch, watch.num_rows = 1, 5
        value = loss(model(torch.randn(5, 4))["out"])
        value.backward()
    return watch.first(losses_are_finite=bool(value.isfinite()))


def test_in_the_forward_pass() -> None:
    found = seen(Model(Culprit(forward=True, backward=False)))
    assert found == Sighting("forward", "block.inner.1", "Culprit", 3, 1, (0, 1, 2, 3, 4))
    assert found.in_words() == "forward of block.inner.1 (Culprit), rank 3, micro-batch 1"


def test_the_rows_of_the_samples_are_named() -> None:
    assert seen(Model(Culprit(forward=True, backward=False, row=2))).rows == (2,)


def test_in_the_backward_pass() -> None:
    found = seen(Model(Culprit(forward=False, backward=True)))
    assert (found.where, found.module, found.kind) == ("backward", "block.inner.1", "Culprit")


def test_the_inner_of_two_modules_that_take_the_same() -> None:
    """The block takes what its norm takes; the gradient of that is what goes wrong."""
    model = Model(nn.Identity())
    norm = nn.Sequential(Culprit(forward=False, backward=True), nn.LayerNorm(4))
    model.block.norm = norm  # type: ignore[assignment]
    assert seen(model).module == "block.norm.0"


def test_in_the_loss() -> None:
    found = seen(Model(nn.Identity()), lambda out: out.mean() * torch.inf)
    assert (found.where, found.module) == ("loss", None)


def test_in_the_gradient_of_the_loss() -> None:
    found = seen(Model(nn.Identity()), lambda out: (out * 0).sum().sqrt())
    assert (found.where, found.module) == ("backward", WHOLE_MODEL)


def test_in_the_gradient_of_weights_alone() -> None:
    assert seen(Model(nn.Identity())).where == "weight gradients"


def test_the_earliest_of_all_ranks_is_the_cause() -> None:
    """A feature that is not finite spoils the loss, and so the gradients of every rank."""
    others = [Sighting("loss", rank=0), Sighting("forward", "a", "A", 2, 1), Sighting("forward", "b", "B", 1, 1)]
    assert min(others, key=lambda sighting: sighting.place).module == "b"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler itself
def test_a_compiled_block_is_looked_into() -> None:
    torch.compiler.reset()
    model = Model(RootOfNegative())
    model.block.inner.compile(backend="eager")
    model(torch.randn(5, 4))
    assert seen(model).module == "block.inner.1"


def test_hooks_are_gone_afterwards() -> None:
    model = Model(nn.Identity())
    with pytest.raises(RuntimeError, match="stop"), watching(model, rank=0):
        raise RuntimeError("stop")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert Watch(0).first(losses_are_finite=True).where == "weight gradients"
