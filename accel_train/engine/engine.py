"""How training is spread over ranks. Everything else in this package sees one machine and asks this class."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_train.config.rules import ONE_GRAPH_ENGINES
from accel_train.engine.launch import Launch
from accel_train.engine.shards import Shard
from accel_train.errors import CheckFailed, UserError
from accel_train.whereabouts import Whereabouts

Result = TypeVar("Result")
Gradients = list[list[Tensor]]
"""For each parameter group, this rank's pieces of its gradients; scaling them in place scales the gradient."""

_ended_groups: list[Any] = []
"""Keeps process groups until the interpreter ends. Else DistributedDataParallel may hold the last reference, and freeing it
waits, with the interpreter's lock held, for gloo's thread, which may be waiting for that lock to free a collective's
tensors: a rank would hang after its last step."""


class Engine(ABC):
    """Prepares a model and optimizer, and gives the verbs of one step: sync, backward, norms, scale, step.

    Every engine averages gradients over ranks. `backward` undoes that, so gradients are sums of what ranks pass in.
    """

    gradients_are_sharded: bool
    """True where a rank holds a part of each gradient, so that norms must be summed over ranks."""

    def __init__(self, launch: Launch, accelerator: Accelerator) -> None:
        self.launch = launch
        self.accelerator = accelerator
        self.rank = launch.rank
        self.world_size = launch.world_size
        self.is_main = launch.rank == 0
        self.device: torch.device = accelerator.device
        self.loss_scale = 1.0
        self.whereabouts = Whereabouts()
        self._limited: list[tuple[Tensor, float]] | None = None
        self._moving: list[Tensor] | None = None
        self.model: nn.Module
        self.optimizer: Optimizer
        if accelerator.num_processes != launch.world_size or accelerator.process_index != launch.rank:
            raise UserError(
                f"The launcher started rank {launch.rank} of {launch.world_size}, but Accelerate sees rank "
                f"{accelerator.process_index} of {accelerator.num_processes}: each rank would train alone. Check that "
                "ACCELERATE_USE_CPU and the backend fit the hardware (`accel-train doctor` shows them).",
                code="AT202",
            )
        # Counts and flags travel over the CPU, so that agreeing on them never waits for the device.
        on_device = self._is_distributed and dist.get_backend() != "gloo"
        self._control = dist.new_group(backend="gloo") if on_device else None

    @property
    def _is_distributed(self) -> bool:
        return self.world_size > 1

    @property
    def can_keep_graphs(self) -> bool:
        """Whether other forward passes may come between a graph and its backward pass."""
        return self.launch.engine not in ONE_GRAPH_ENGINES

    # Setting up

    def can_fuse(self, optimizer_name: str) -> bool:
        """Whether torch's one-kernel update of this optimizer works on the engine's tensors."""
        return True

    def prepare(self, model: nn.Module, optimizer: Optimizer, *, precision: str, block_classes: set[str]) -> nn.Module:
        """Moves, wraps and shards model and optimizer, and proves that the engine asked for is really on.

        `block_classes` names the classes of repeated blocks, the units that FSDP2 shards. Groups keep their order and keys.
        """
        if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
            raise UserError(f"Parameters of no dimension can't be sharded: {scalars}. Give them shape (1,).")
        groups = [dict(group) for group in optimizer.param_groups]
        self._limited = self._moving = None
        run_in(model, precision, self.device.type)
        self._prepare(model, optimizer, block_classes)
        self._check_active()
        for index, (before, after) in enumerate(zip(groups, self.optimizer.param_groups, strict=True)):
            changed = [k for k in ("name", "base_lr", "weight_decay", "max_grad_norm") if before[k] != after[k]]
            if changed:
                raise UserError(
                    f"{self.launch.engine} changed {changed} of parameter group {index} ({before['name']}).",
                    code="AT202",
                )
        return self.model

    def hold(self, model: nn.Module, *, precision: str) -> None:
        """Takes a whole model on every rank, for evaluation alone."""
        run_in(model, precision, self.device.type)
        self.model = model.to(self.device)

    @abstractmethod
    def _prepare(self, model: nn.Module, optimizer: Optimizer, block_classes: set[str]) -> None:
        """Sets self.model and self.optimizer."""

    @abstractmethod
    def _check_active(self) -> None:
        """Raises UserError if the wrapper or the sharding asked for is not there."""

    # One step

    @abstractmethod
    def set_sync(self, last: bool) -> None:
        """Says, before a forward pass, whether its backward is the step's last one: gradients are reduced then."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` to what the ranks sum up."""
        self._backward(loss * (self.world_size * self.loss_scale))

    @abstractmethod
    def _backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def gradients(self) -> Gradients:
        """This rank's reduced gradients, valid between the last backward and the step."""

    def unscale(self) -> None:
        """Takes the loss scale out of the gradients. Once a step, before norms are read."""
        if self.loss_scale != 1.0:
            self.scale_gradients([1 / self.loss_scale] * len(self.optimizer.param_groups))

    def grad_norms(self) -> Tensor:
        """Gradient norm of every group, shape (groups,), float64 on the CPU, the same on every rank."""
        squares = torch.zeros(len(self.optimizer.param_groups), dtype=torch.float64, device=self.device)
        for index, pieces in enumerate(self.gradients()):
            if pieces:
                norms = torch.stack(torch._foreach_norm(pieces)).double()
                squares[index] = norms.square().sum()
        if self.gradients_are_sharded:
            self.sum_(squares)
        return squares.sqrt().cpu()

    def scale_gradients(self, factors: list[float]) -> None:
        """Multiplies the gradients of each group."""
        for factor, pieces in zip(factors, self.gradients(), strict=True):
            if factor != 1.0 and pieces:
                torch._foreach_mul_(pieces, factor)

    @abstractmethod
    def step(self) -> None:
        """Updates the weights and clears the gradients."""

    def keep_below(self, limits: dict[str, float]) -> None:
        """After an update: lowers the weights of some parameters, by name, to at most these values.

        What the optimizer holds is lowered. Under ZeRO the model holds a copy, which shows the weight from before for one
        forward pass more, so a model clamps such a weight where it uses it, too.
        """
        if self._limited is None:
            self._limited = [(shard.weight, limits[shard.name]) for shard in self.shards(()) if shard.name in limits]
        for weight, largest in self._limited:
            weight.clamp_(max=largest)

    def moving_buffers(self) -> list[Tensor]:
        """What a forward pass of the training model may change beside the gradients: BatchNorm's running statistics."""
        if self._moving is None:
            self._moving = [
                buffer
                for module in self.bare_model().modules()
                if module.training
                for name, buffer in module.named_buffers(recurse=False)
                if name not in module._non_persistent_buffers_set
            ]
        return self._moving

    @abstractmethod
    def discard_gradients(self) -> None:
        """Clears the gradients without an update."""

    # Between ranks

    def sum_(self, value: Tensor) -> Tensor:
        """Sums a device tensor over ranks, in place."""
        if self._is_distributed:
            self.whereabouts.enter("sum_")
            dist.all_reduce(value)
            self.whereabouts.leave()
        return value

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Joins the ranks' rows, rank 0 first; rank r holds counts[r] of them. No gradient flows."""
        if not self._is_distributed:
            return rows
        longest = max(counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = rows.new_empty((self.world_size * longest, *rows.shape[1:]))
        self.whereabouts.enter("gather_rows")
        dist.all_gather(list(everyone.chunk(self.world_size)), padded)
        self.whereabouts.leave()
        if min(counts) == longest:
            return everyone
        return torch.cat([everyone[rank * longest : rank * longest + count] for rank, count in enumerate(counts)])

    def exchange(self, numbers: list[int]) -> list[list[int]]:
        """Every rank's small integers, by rank, over the CPU."""
        if not self._is_distributed:
            return [numbers]
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        self.whereabouts.enter("exchange")
        dist.all_gather(everyone, mine, group=self._control)
        self.whereabouts.leave()
        return [row.tolist() for row in everyone]

    def gather_objects(self, thing: Any) -> list[Any]:
        """Every rank's small object, by rank."""
        if not self._is_distributed:
            return [thing]
        everyone: list[Any] = [None] * self.world_size
        self.whereabouts.enter("gather_objects")
        dist.all_gather_object(everyone, thing, group=self._control)
        self.whereabouts.leave()
        return everyone

    def together(self, action: Callable[[], Result]) -> Result:
        """Runs an action on every rank. If it fails on any, every rank raises: its own error, or the first rank's."""
        failure: Exception | None = None
        try:
            result = action()
        except (UserError, CheckFailed, OSError) as error:
            failure = error
        for rank, other in enumerate(self.gather_objects(failure)):
            if other is not None:
                raise failure or _of_rank(rank, other)
        return result

    def share_buffers(self) -> None:
        """Gives every rank rank 0's buffers: BatchNorm's running statistics, where each rank trains on its own batches."""
        if self._is_distributed:
            self.whereabouts.enter("share_buffers")
            for buffer in self.bare_model().buffers():
                dist.broadcast(buffer, src=0)
            self.whereabouts.leave()

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: column.to(self.device, non_blocking=True) for name, column in batch.items()}

    # State

    @abstractmethod
    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        """This rank's pieces of weights and optimizer state; state that does not exist yet is made, as zeros."""

    @abstractmethod
    def finish_loading(self, updates: list[int]) -> None:
        """After a checkpoint was copied into the shards: sets the count of updates of each group, and what is derived."""

    def release(self) -> None:
        """Gives model and optimizer back, so that others can be prepared. The ranks stay connected."""
        self.accelerator.free_memory()
        del self.model, self.optimizer
        gc.collect()

    def bare_model(self) -> nn.Module:
        """The model without the engine's wrapper, for names, buffers and modes."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=True)

    # Trackers

    def start_trackers(self, config: dict[str, Any]) -> None:
        """Starts the trackers named in log.trackers, with the configuration beside them."""
        self.accelerator.init_trackers("accel_train", config=config)

    def track(self, values: dict[str, float], step: int) -> None:
        self.accelerator.log(values, step=step)

    def close(self) -> None:
        """Ends trackers and the process group."""
        if dist.is_initialized():
            _ended_groups.append(dist.group.WORLD)
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def run_in(model: nn.Module, precision: str, device_type: str) -> None:
    """Makes the model's forward compute under autocast and return float32.

    One place for every engine: weights, gradients and reductions stay float32, so that engines agree with each other.
    """
    if precision == "fp32":
        return
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    forward = model.forward

    def in_precision(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with torch.autocast(device_type, dtype=dtype):
            outputs = forward(*args, **kwargs)
        return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}

    model.forward = in_precision


def _of_rank(rank: int, failure: Exception) -> Exception:
    """Another rank's failure, as this one raises it."""
    message = f"on rank {rank}: {failure}"
    return (
        type(failure)(message, code=failure.code) if isinstance(failure, (UserError, CheckFailed)) else OSError(message)
    )
