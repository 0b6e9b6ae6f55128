"""One step in one process: exact gradients from micro-batches, and no more work than they need."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.data.dataset import Dataset
from accel_train.engine.launch import Launch
from accel_train.engine.plain import DataParallel
from accel_train.step import Draw, StepLosses, forward_backward
from accel_train.tasks.task import Batch, Task

NUM_ROWS, WIDTH, HIDDEN = 10, 6, 80
SPLITS = [[10], [5, 5], [4, 3, 3], [1] * 10]


class Towers(nn.Module):
    """Two towers with dropout, and a temperature that every row shares."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Dropout(0.3), nn.Linear(HIDDEN, 4))
        self.right = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Dropout(0.3), nn.Linear(HIDDEN, 4))
        self.logit_scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, batch: Batch) -> Batch:
        outputs = {"logit_scale": self.logit_scale.exp()}
        for side, module in (("left", self.left), ("right", self.right)):
            if side in batch:
                outputs[f"{side}_features"] = F.normalize(module(batch[side]), dim=-1)
        return outputs


class PairTask(Task):
    """InfoNCE over all rows, taken in one piece."""

    compares_whole_batch = True
    shared_outputs = frozenset({"logit_scale"})
    loss_columns = ("weight",)
    output_inputs = {"left_features": ("left",), "right_features": ("right",)}

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return Towers()

    def build_dataset(self, split: str) -> Dataset:
        raise NotImplementedError

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        logits = outputs["left_features"] @ outputs["right_features"].T * outputs["logit_scale"]
        own = torch.arange(len(logits))
        weighted = F.cross_entropy(logits, own, reduction="none") * batch["weight"]
        return {"to_right": weighted.mean(), "to_left": 0.5 * F.cross_entropy(logits.T, own)}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        raise NotImplementedError

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        raise NotImplementedError


class RowTask(PairTask):
    """A loss that adds up: a weighted mean over the rows, `weight` being the number of targets of a row."""

    compares_whole_batch = False

    def num_targets(self, batch: Batch) -> Tensor:
        return batch["weight"].sum()

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        error = (outputs["left_features"] - outputs["right_features"]).square().sum(1) * outputs["logit_scale"]
        return {"error": (error * batch["weight"]).sum() / batch["weight"].sum()}


@pytest.fixture
def config() -> ContrastiveConfig:
    return ContrastiveConfig.model_validate(
        {
            "run_dir": "unused",
            "max_steps": 1,
            "model": {"type": "clip", "size": "tiny"},
            "data": {"path": "x", "tokenizer": "x", "global_batch_size": NUM_ROWS, "micro_batch_size": 1},
            "optimizer": {"towers": [{"name": "all", "layers": ["."], "lr": 1.0}]},
        }
    )


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "left": torch.randn(NUM_ROWS, WIDTH, generator=generator),
        "right": torch.randn(NUM_ROWS, WIDTH, generator=generator),
        "weight": torch.arange(1.0, NUM_ROWS + 1),
        "sample_id": torch.arange(NUM_ROWS),
    }


class WatchedEngine(DataParallel):
    """One process without a process group, which remembers what was called in which order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(Launch("ddp", False, 0, 0, 1), Accelerator(cpu=True))
        self.model = model
        self.events: list[Any] = []
        model.register_forward_pre_hook(
            lambda module, inputs: self.events.append(f"forward {sorted(inputs[0].keys() & {'left', 'right'})}")
        )

    def set_sync(self, last: bool) -> None:
        self.events.append(("sync", last))
        super().set_sync(last)

    def _backward(self, loss: Tensor) -> None:
        self.events.append("backward")
        super()._backward(loss)


class Steps:
    """Runs steps of one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.losses = task.losses
        self.model = task.build_model()
        self.engine = WatchedEngine(self.model)
        self.events = self.engine.events
        task.losses = self._watched_losses  # type: ignore[method-assign]

    def _watched_losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        self.events.append("losses")
        return self.losses(outputs, batch)

    def keep_graphs(self, number: int) -> None:
        compute = self.task.config.compute.model_copy(update={"kept_graphs": number})
        self.task.config = self.task.config.model_copy(update={"compute": compute})

    def take(self, batch: Batch, sizes: list[int], draw: Draw) -> tuple[StepLosses, dict[str, Tensor | None]]:
        losses = forward_backward(self.engine, self.task, split(batch, sizes), [len(batch["sample_id"])], draw)
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        self.model.zero_grad()
        return losses, gradients


@pytest.fixture
def steps(config: ContrastiveConfig) -> Iterator[Callable[[type[Task]], Steps]]:
    yield lambda task: Steps(task(config))
    AcceleratorState._reset_state(reset_partial_state=True)


MakeSteps = Callable[[type[Task]], Steps]


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    pieces = {name: column.split(sizes) for name, column in batch.items()}
    return [{name: pieces[name][index] for name in batch} for index in range(len(sizes))]


@contextmanager
def no_draws(index: int) -> Iterator[None]:
    yield


def seeded(index: int) -> Any:
    torch.manual_seed(index)
    return no_draws(index)


def in_one_piece(steps: Steps, batch: Batch, sizes: list[int], draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
    """The same micro-batches under the same draws, in one graph."""
    outputs = []
    for index, part in enumerate(split(batch, sizes)):
        with draw(index):
            outputs.append(steps.model(part))
    whole = {
        name: outputs[0][name] if name in steps.task.shared_outputs else torch.cat([piece[name] for piece in outputs])
        for name in outputs[0]
    }
    loss = torch.stack(list(steps.losses(whole, batch).values())).sum()
    parameters = dict(steps.model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("kept_graphs", [1, 2, 10])
@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("task", [PairTask, RowTask])
def test_equals_one_graph(task: type[Task], sizes: list[int], kept_graphs: int, steps: MakeSteps, batch: Batch) -> None:
    """Dropout is on: the second pass of `cached` has to meet the draws of the first."""
    running = steps(task)
    running.keep_graphs(kept_graphs)
    losses, gradients = running.take(batch, sizes, seeded)
    wanted_loss, wanted = in_one_piece(running, batch, sizes, seeded)
    torch.testing.assert_close(torch.stack(list(losses.losses.values())).sum(), wanted_loss)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [PairTask, RowTask])
def test_equals_every_other_split_without_dropout(task: type[Task], steps: MakeSteps, batch: Batch) -> None:
    running = steps(task)
    running.model.eval()
    (_, first), *others = (running.take(batch, sizes, no_draws) for sizes in SPLITS)
    for _, gradients in others:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, first[name], rtol=1e-5, atol=1e-5)


def test_each_loss_is_named(steps: MakeSteps, batch: Batch) -> None:
    losses, _ = steps(PairTask).take(batch, [4, 3, 3], seeded)
    assert set(losses.losses) == {"to_right", "to_left"}
    assert all(value.ndim == 0 and not value.requires_grad for value in losses.losses.values())
    assert losses.outputs()["left_features"].shape == (NUM_ROWS, 4)


BOTH = "forward ['left', 'right']"


def test_cached_keeps_the_last_graph_and_reduces_in_the_last_backward(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.take(batch, [4, 3, 3], seeded)
    first_pass = [("sync", False), BOTH] * 3
    second_pass = ["backward", ("sync", False), BOTH, "backward", ("sync", True), BOTH, "backward"]
    assert running.events == [*first_pass, "losses", *second_pass]


def test_graphs_that_are_kept_go_first_and_together(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.keep_graphs(2)
    running.take(batch, [4, 3, 3], seeded)
    assert running.events == [*[("sync", False), BOTH] * 3, "losses", "backward", ("sync", True), BOTH, "backward"]


def test_with_all_graphs_kept_nothing_runs_twice(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.keep_graphs(3)
    running.take(batch, [4, 3, 3], seeded)
    assert running.events == [*[("sync", False), BOTH] * 2, ("sync", True), BOTH, "losses", "backward"]


def freeze(tower: nn.Module) -> None:
    """Its last layer, the head, goes on training."""
    for parameter in tower[0].parameters():
        parameter.requires_grad_(False)
    tower[1].eval()


@pytest.mark.parametrize("kept_graphs", [1, 2])
@pytest.mark.parametrize("sizes", SPLITS)
def test_a_head_on_a_frozen_tower_equals_one_graph(
    sizes: list[int], kept_graphs: int, steps: MakeSteps, batch: Batch
) -> None:
    running = steps(PairTask)
    running.keep_graphs(kept_graphs)
    freeze(running.model.left)
    _, gradients = running.take(batch, sizes, seeded)
    trained = {name for name, parameter in running.model.named_parameters() if parameter.requires_grad}
    for parameter in running.model.parameters():
        parameter.requires_grad_(True)
    _, wanted = in_one_piece(running, batch, sizes, seeded)
    for name, gradient in wanted.items():
        if name in trained:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)
        else:
            assert gradients[name] is None


def test_the_graph_of_a_head_is_light_and_its_frozen_tower_runs_once(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    freeze(running.model.left)
    running.take(batch, [4, 3, 3], seeded)
    right = "forward ['right']"
    second_pass = ["backward", ("sync", False), right, "backward", ("sync", True), right, "backward"]
    assert running.events == [*[("sync", False), BOTH] * 3, "losses", *second_pass]


def test_where_only_heads_train_nothing_runs_twice(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    freeze(running.model.left)
    freeze(running.model.right)
    running.take(batch, [4, 3, 3], seeded)
    assert running.events == [*[("sync", False), BOTH] * 2, ("sync", True), BOTH, "losses", "backward"]


def test_an_engine_of_one_graph_keeps_no_light_ones(
    steps: MakeSteps, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WatchedEngine, "can_keep_graphs", False)
    running = steps(PairTask)
    freeze(running.model.left)
    running.take(batch, [5, 5], seeded)
    assert running.events[-3:] == [("sync", True), BOTH, "backward"]


def test_a_single_micro_batch_runs_once(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.take(batch, [10], seeded)
    assert running.events == [("sync", True), BOTH, "losses", "backward"]


def test_summed_reduces_in_the_last_backward(steps: MakeSteps, batch: Batch) -> None:
    running = steps(RowTask)
    running.take(batch, [5, 5], seeded)
    assert running.events == [("sync", False), BOTH, "losses", "backward", ("sync", True), BOTH, "losses", "backward"]


def test_a_frozen_tower_is_left_out_of_the_second_pass(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.model.get_submodule("left").requires_grad_(False)
    running.model.eval()
    _, gradients = running.take(batch, [5, 5], no_draws)
    forwards = [event for event in running.events if str(event).startswith("forward")]
    assert forwards == [BOTH, BOTH, "forward ['right']"]
    assert gradients["left.0.weight"] is None
    running.model.requires_grad_(True)
    _, wanted = in_one_piece(running, batch, [10], no_draws)
    for name in ("right.0.weight", "logit_scale"):
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_each_draw_covers_forward_and_backward_of_its_micro_batch(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    running.take(batch, [4, 3, 3], lambda index: entered(running.events, index))
    told = [event for event in running.events if event == "backward" or isinstance(event, int)]
    assert told == [0, 1, 2, 2, "backward", 0, "backward", 1, "backward"]


@contextmanager
def entered(events: list[Any], index: int) -> Iterator[None]:
    events.append(index)
    yield


def test_the_loss_scale_is_taken_into_the_gradients(steps: MakeSteps, batch: Batch) -> None:
    running = steps(PairTask)
    _, plain = running.take(batch, [5, 5], seeded)
    running.engine.loss_scale = 1024.0
    losses, scaled = running.take(batch, [5, 5], seeded)
    for name, gradient in plain.items():
        assert gradient is not None
        torch.testing.assert_close(scaled[name], gradient * 1024)
    assert float(losses.losses["to_left"]) < 10


@pytest.mark.parametrize("weights", [[0.0] * 3 + [1.0] * 7, [1.0] * 4 + [0.0] * 6, [0.0] * 10])
def test_a_micro_batch_without_targets_changes_nothing(weights: list[float], steps: MakeSteps, batch: Batch) -> None:
    """Its mean loss is 0 / 0, and so is the gradient of that."""
    batch["weight"] = torch.tensor(weights)
    running = steps(RowTask)
    running.model.eval()
    losses, gradients = running.take(batch, [3, 1, 3, 3], no_draws)
    num_targets = batch["weight"].sum().clamp(min=1)
    outputs = running.model(batch)
    error = (outputs["left_features"] - outputs["right_features"]).square().sum(1) * outputs["logit_scale"]
    loss = (error * batch["weight"]).sum() / num_targets
    loss.backward()
    assert losses.losses["error"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in running.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [PairTask, RowTask])
def test_few_micro_batches_are_on_the_device_at_once(steps: MakeSteps, batch: Batch, task: type[Task]) -> None:
    """However many there are: the next one may come while the last one is still in use."""
    taken = steps(task)
    there = weakref.WeakSet[Tensor]()
    most = 0

    def copied(batch: Batch) -> Batch:
        nonlocal most
        moved = {name: column.clone() for name, column in batch.items()}
        there.update(moved[name] for name in ("left", "right") if name in moved)
        most = max(most, len(there))
        return moved

    taken.engine.to_device = copied  # type: ignore[method-assign]
    taken.take(batch, [1] * NUM_ROWS, seeded)
    assert 2 <= most <= 4  # two sides of one or two micro-batches
