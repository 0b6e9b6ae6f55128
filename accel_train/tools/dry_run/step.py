"""One step of training without memory or arithmetic: what `step.py` does, on fake tensors, with everything counted.

The program is that of `step.py`, line by line. It differs where a real step reads numbers, which fake tensors don't have,
and it takes two micro-batches and two ranks' blocks for any number of them: the others hold and cost what the second does.
"""

import copy
import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from accel_train.config.rules import ONE_GRAPH_ENGINES
from accel_train.interrupts import uninterrupted
from accel_train.light_graphs import all_light, has_frozen, light_outputs
from accel_train.models.blocks import repeated_blocks
from accel_train.optim.param_groups import GroupPlan, freeze, set_train_mode
from accel_train.tasks.task import Batch, Task
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.engines import make_spread
from accel_train.tools.dry_run.loss import MOST_BLOCKS, DryLoss, bytes_of
from accel_train.tools.dry_run.spread import Spread, num_bytes

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SIMULATED = 2
CUBLAS_THREADS = 2
CUBLAS_WORKSPACE, HOPPER_WORKSPACE = (2 * 4096 + 8 * 16) * 1024, 8 * 4096 * 1024


@dataclass(frozen=True, slots=True)
class Split:
    """How a global batch is cut up, and what holds the model."""

    engine: str
    world_size: int
    micro_batch_size: int
    num_micro_batches: int
    activation_checkpointing: bool
    offload: bool = False
    kept_graphs: int = 1
    """Micro-batches whose graph a cached step keeps, so that they are encoded once."""

    @property
    def may_keep_several_graphs(self) -> bool:
        """Whether compute.kept_graphs may be above 1; `check_kept_graphs` refuses it where it may not."""
        return self.engine not in ONE_GRAPH_ENGINES and not self.activation_checkpointing

    @property
    def may_keep_more_graphs(self) -> bool:
        return self.may_keep_several_graphs and self.kept_graphs < self.num_micro_batches


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that an engine sends around."""

    all_weights: int
    trained_weights: int
    outside_blocks: int
    num_tensors: int
    """Parameters that train."""
    num_blocks: int


@dataclass(frozen=True, slots=True)
class DryStep:
    counted: Counting
    has_loss: bool
    """False where the loss can't be taken without numbers, so that its own memory and time are missing."""
    split: Split
    num_simulated: int
    """Micro-batches that were really gone through."""
    sizes: Sizes
    row_bytes: int
    """Of the outputs for each sample, under `cached`; 0 for losses that add up."""
    passed_bytes: int
    """Of those that several ranks pass on in blocks; 0 where they gather all of them."""
    passed_back_bytes: int
    """Of the gradient that follows these."""
    splits_loss: bool
    compares_whole_batch: bool

    @property
    def num_blocks(self) -> int:
        """Between which a rank takes its loss, one after the other."""
        return self.split.world_size if self.passed_bytes else 1

    @property
    def num_simulated_blocks(self) -> int:
        return min(self.num_blocks, MOST_BLOCKS)


def batches_on_device(split: Split) -> int:
    """Micro-batches whose columns are there at once: on a GPU that at work, and those whose graphs wait with it."""
    return split.kept_graphs if torch.cuda.is_available() else split.num_micro_batches


def library_workspaces() -> int:
    """Bytes that cuBLAS takes for itself: as much for the thread that goes back as for the one that goes forward.

    What torch gives it where CUBLAS_WORKSPACE_CONFIG doesn't say otherwise (aten/src/ATen/cuda/CublasHandlePool.cpp).
    """
    if not torch.cuda.is_available():
        return 0
    return CUBLAS_THREADS * (HOPPER_WORKSPACE if torch.cuda.get_device_capability()[0] >= 9 else CUBLAS_WORKSPACE)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Python's garbage collector would go through all fake tensors again and again: an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@uninterrupted()
@_without_collecting()
def dry_step(model: nn.Module, plan: GroupPlan, task: Task, split: Split) -> DryStep:
    """`model` may be on the meta device; it is left as it is. A task that can't show a batch has no activations."""
    num = min(split.num_micro_batches, MOST_SIMULATED)
    batch = task.example_batch(split.micro_batch_size)
    ids = torch.zeros(split.micro_batch_size, dtype=torch.int64)
    # Of the columns that only losses read, most hold one number for each row.
    columns = dict.fromkeys(("sample_id", *task.loss_columns), ids) | (batch or {})
    model = copy.deepcopy(model)
    counted = Counting()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")
        freeze(model, plan)
        set_train_mode(model)
    with fake, counted:
        counted.label, counted.phase = "batch", "setup"
        batches = [{name: torch.empty_like(column) for name, column in columns.items()} for _ in range(num)]
        counted.hold("frozen teacher", task.frozen_bytes())
        counted.hold("libraries' workspaces", library_workspaces())
        others = batches_on_device(split) - num
        counted.hold("batch", others * sum(column.numel() * column.element_size() for column in columns.values()))
        if split.activation_checkpointing:
            _checkpoint(model)
        spread = make_spread(model, plan, task.config.optimizer, counted, split.engine, split.world_size, split.offload)
        run = _Run(task, model, spread, counted, split, batches)
        if batch is None:
            run.backward(torch.stack([parameter.sum() for parameter in spread.trained]).sum(), last=True)
            has_loss = False
        else:
            has_loss = run.cached() if task.compares_whole_batch else run.summed()
        counted.phase = "optimizer"
        spread.optimizer_step()
    counted.end()
    return DryStep(
        counted,
        has_loss,
        run.split,
        num,
        sizes_of(model),
        *run.row_bytes,
        task.splits_loss,
        task.compares_whole_batch,
    )


def sizes_of(model: nn.Module) -> Sizes:
    """Of a model whose frozen parameters need no gradient."""
    every = list(model.parameters())
    trained = [parameter for parameter in every if parameter.requires_grad]
    blocks = repeated_blocks(model)
    inside = {id(parameter) for _, block in blocks for parameter in block.parameters()}
    outside = [parameter for parameter in every if id(parameter) not in inside]
    return Sizes(num_bytes(every), num_bytes(trained), num_bytes(outside), len(trained), len(blocks))


def _checkpoint(model: nn.Module) -> None:
    """As `checkpoint_activations`, without the random state, which fake tensors can't give."""
    for _, block in repeated_blocks(model):
        block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class _Run:
    def __init__(
        self, task: Task, model: nn.Module, spread: Spread, counted: Counting, split: Split, batches: list[Batch]
    ) -> None:
        self.task, self.model, self.spread, self.counted, self.split = task, model, spread, counted, split
        self.batches = batches
        self.dtype = AUTOCAST[task.config.precision]
        self.rows = len(next(iter(batches[0].values())))
        self.loss = DryLoss(
            task, counted, batches[0], own_rows=split.num_micro_batches * self.rows, world_size=split.world_size
        )
        self.row_bytes = (0, 0, 0)
        """Of all outputs, of those that are passed on, and of their gradient."""

    def forward(self, batch: Batch, phase: str) -> Batch:
        """As the engine's forward: computes in the run's precision and returns float32."""
        self.counted.label, self.counted.phase = "activations", phase
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            outputs: Batch = self.model(batch)
        if self.dtype is None:
            return outputs
        return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.counted.label, self.counted.phase = "backward pass", "backward"
        self.spread.before_backward(last=last)
        loss.backward()
        self.spread.after_backward(last=last)

    def summed(self) -> bool:
        has_loss = True
        for turn, batch in enumerate(self.batches):
            outputs = self.forward(batch, "forward")
            loss, has_loss = self.loss.taken(outputs, batch)
            self.backward(loss, last=turn == len(self.batches) - 1)
            del loss
        return has_loss

    def cached(self) -> bool:
        num = len(self.batches)
        pieces: list[Batch] = []
        before, light = 0, frozenset[str]()
        keeps_graphs = self.split.engine not in ONE_GRAPH_ENGINES and has_frozen(self.model)
        for turn, batch in enumerate(self.batches):
            before, is_last = self.counted.now["activations"], turn == num - 1
            if not is_last and not keeps_graphs:
                continue
            outputs = self.forward(batch, "forward" if is_last else "forward, for features")
            if not is_last:
                light = light_outputs(outputs, self.task.output_inputs)
                if all_light(outputs, light | self.task.shared_outputs):
                    self.split = replace(self.split, kept_graphs=self.split.num_micro_batches)
                outputs = {name: value if name in light else value.detach() for name, value in outputs.items()}
            pieces.append(outputs)
            del outputs
        kept = pieces[-1]
        if len(pieces) < num:  # a pass without a graph computes what one with a graph does, and holds less
            self.counted.repeat("forward", "forward, for features")
        other_graphs = (self.split.kept_graphs - 1) * (self.counted.now["activations"] - before)
        self.counted.hold("activations", other_graphs)
        self.counted.label, self.counted.phase = "features and loss", "loss"
        pieces_before = self.split.num_micro_batches - len(pieces)  # the real step keeps its pieces until the end
        self.counted.hold("features and loss", pieces_before * bytes_of(kept.values()))
        self.row_bytes = self.bytes_of_a_row(kept)
        gradients, held, has_loss = self.loss.gradients(kept)
        for turn, batch in enumerate([self.batches[-1], *self.batches[:-1]]):
            outputs = kept
            if turn:
                again = [name for name in gradients if name not in light]
                outputs = self.forward(self.inputs_of(batch, again, kept), "forward, again")
                outputs |= {name: pieces[turn - 1][name] for name in light}
            terms = [
                (outputs[name] * (gradient if name in self.task.shared_outputs else gradient[: self.rows])).sum()
                for name, gradient in gradients.items()
            ]
            surrogate = torch.stack(terms).sum()
            del terms, outputs
            self.backward(surrogate, last=turn == num - 1)
            del surrogate
            self.counted.hold("activations", -other_graphs)
            other_graphs = 0
        del held
        return has_loss

    def bytes_of_a_row(self, outputs: Batch) -> tuple[int, int, int]:
        found = {name: value for name, value in outputs.items() if name not in self.task.shared_outputs}
        passed = [found[name] for name in self.task.ring_outputs]
        back = [value for value in passed if value.requires_grad]
        return bytes_of(found.values()) // self.rows, bytes_of(passed) // self.rows, bytes_of(back) // self.rows

    def inputs_of(self, batch: Batch, learnt: list[str], outputs: Batch) -> Batch:
        needed, unneeded = set[str](), set[str]()
        for name, columns in self.task.output_inputs.items():
            if name in outputs:
                (needed if name in learnt else unneeded).update(columns)
        return {name: column for name, column in batch.items() if name in needed or name not in unneeded}
