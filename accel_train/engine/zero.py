"""ZeRO-1, -2 and -3 through Accelerate and DeepSpeed.

Everything here that starts with an underscore of DeepSpeed's, and the layout of its partitions, is private to DeepSpeed:
setup.cfg pins the versions this was tested with, and tests/distributed fails loudly when a release moves it.
"""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from torch import Tensor, nn
from transformers.integrations import unset_hf_deepspeed_config

from accel_train.engine import buffers
from accel_train.engine.engine import Engine, Gradients
from accel_train.engine.launch import Launch
from accel_train.engine.shards import Shard
from accel_train.engine.zero_linear import remember_sharded_weights
from accel_train.errors import UserError


def zero_plugin(launch: Launch, micro_batch_size: int) -> DeepSpeedPlugin:
    """DeepSpeed's configuration: it shards and reduces in float32; accumulation, clipping and precision are ours."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        import deepspeed.ops
    except ImportError as missing:
        raise UserError(
            f"engine {launch.engine} needs DeepSpeed: pip install 'accel_train[deepspeed]'", code="AT203"
        ) from missing
    # The shared-memory all-reduce for CPU hosts is compiled at first use and can wait for ever on a stale lock; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that torch 2.13 deprecates; nobody here can act on that.
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\.\w+_tensor.* is deprecated", category=FutureWarning
    )
    stage = int(launch.engine.removeprefix("zero"))
    sharding: dict[str, Any] = {"stage": stage, "reduce_bucket_size": buffers.REDUCE_BUCKET}
    if stage == 3:
        sharding |= {"stage3_max_live_parameters": buffers.ZERO3_LIVE}
        sharding |= {"stage3_max_reuse_distance": buffers.ZERO3_LIVE}
        sharding["memory_efficient_linear"] = False  # ours is: zero_linear.py
    if launch.offload_optimizer:
        sharding["offload_optimizer"] = {"device": "cpu"}
    return DeepSpeedPlugin(
        zero3_init_flag=False,
        hf_ds_config={
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": sharding,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )


class Zero(Engine):
    """DeepSpeed's engine around the model, its ZeRO optimizer around ours."""

    gradients_are_sharded = True

    def __init__(self, launch: Launch, accelerator: Accelerator) -> None:
        super().__init__(launch, accelerator)
        self.stage = int(launch.engine.removeprefix("zero"))
        # Else transformers would build models already sharded, with no shapes to plan groups from.
        unset_hf_deepspeed_config()

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, block_classes: set[str]) -> None:
        self._parameter_names = {id(p): name for name, p in model.named_parameters()}
        if self.stage == 3:
            remember_sharded_weights(model)
        self.model, wrapped = self.accelerator.prepare(model, optimizer)
        self.deepspeed: Any = self.model
        self.zero: Any = wrapped.optimizer
        self.optimizer = self.zero.optimizer
        # DeepSpeed made new group dicts around flat partitions; the learning rate is read from these.
        for ours, theirs in zip(optimizer.param_groups, self.zero.param_groups, strict=True):
            theirs.update({k: v for k, v in ours.items() if k != "params" and k not in theirs})

    def _check_active(self) -> None:
        engine = self.deepspeed
        found = (
            engine.zero_optimization_stage(),
            engine.dp_world_size,
            engine.gradient_clipping(),
            engine.gradient_accumulation_steps(),
        )
        wanted = (self.stage, self.world_size, 0.0, 1)
        if found != wanted:
            raise UserError(
                f"DeepSpeed runs with (stage, ranks, clipping, accumulation) = {found}, asked for were {wanted}.",
                code="AT202",
            )

    def set_sync(self, last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(last)

    def _backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def gradients(self) -> Gradients:
        groups: Gradients = [[] for _ in self.optimizer.param_groups]
        if self.launch.offload_optimizer:
            flats = (
                self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
            )
            for index, flat in enumerate(flats):
                if flat.grad is not None and flat.grad.numel():
                    groups[self._group_of(index)].append(flat.grad)
            return groups
        for index, pieces in self.zero.averaged_gradients.items():
            groups[self._group_of(index)] += [piece for piece in pieces or [] if piece is not None and piece.numel()]
        return groups

    def _group_of(self, index: int) -> int:
        return self.zero.sub_group_to_group_id[index] if self.stage == 3 else index

    def step(self) -> None:
        self.deepspeed.step()
        if self.zero.overflow:
            raise RuntimeError("ZeRO skipped an update although the gradient was finite; its state can't be trusted.")

    def discard_gradients(self) -> None:
        # DeepSpeed clears everything itself when it meets an overflow, so it is given one. ZeRO-3 uses the buffers again and
        # looks at their padding too, so they don't keep it.
        pieces = [piece for group in self.gradients() for piece in group]
        torch._foreach_add_(pieces, float("inf"))
        self.deepspeed.step()
        if not self.zero.overflow:
            raise RuntimeError("ZeRO updated the weights from a gradient that was to be discarded.")
        torch._foreach_zero_(pieces)

    def release(self) -> None:
        self.deepspeed.destroy()
        del self.deepspeed, self.zero
        super().release()

    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        yield from self._sharded_by_rows(state_names) if self.stage == 3 else self._flat_partitions(state_names)
        yield from self._frozen()

    def _flat_partitions(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        for group, flat in zip(self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups, strict=True):
            state = self._state_of(flat, state_names)
            for parameter in group:
                if parameter._hp_mapping is None:  # none of this parameter lies in this rank's partition
                    continue
                whole, mine = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                piece = slice(mine.start, mine.start + mine.numel)
                yield self._shard(parameter, tuple(parameter.shape), whole.start, flat.data[piece], state, piece)

    def _sharded_by_rows(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        for group, flat in zip(self.zero.fp16_groups, self.zero.fp32_partitioned_groups_flat, strict=True):
            state = self._state_of(flat, state_names)
            place = 0
            for parameter in group:
                start = self.rank * parameter.partition_numel()
                length = max(0, min(parameter.partition_numel(), parameter.ds_numel - start))
                piece = slice(place, place + length)
                place += parameter.partition_numel()
                if length:
                    yield self._shard(parameter, tuple(parameter.ds_shape), start, flat.data[piece], state, piece)

    def _shard(
        self,
        parameter: nn.Parameter,
        shape: tuple[int, ...],
        offset: int,
        weight: Tensor,
        state: dict[str, Tensor],
        piece: slice,
    ) -> Shard:
        held = {key: value[piece] for key, value in state.items()}
        return Shard(self._parameter_names[id(parameter)], shape, offset, weight, held)

    def _frozen(self) -> Iterator[Shard]:
        parameter: Any
        for name, parameter in self.bare_model().named_parameters():
            if parameter.requires_grad:
                continue
            if self.stage < 3:
                yield Shard(name, tuple(parameter.shape), 0, parameter.detach().view(-1), replicated=True)
            else:
                start = self.rank * parameter.partition_numel()
                length = max(0, min(parameter.partition_numel(), parameter.ds_numel - start))
                yield Shard(name, tuple(parameter.ds_shape), start, parameter.ds_tensor.data[:length])

    def _state_of(self, flat: Tensor, state_names: tuple[str, ...]) -> dict[str, Tensor]:
        held = self.optimizer.state[flat]
        for key in state_names:
            if held.get(key) is None:
                held[key] = torch.zeros_like(flat)
        if state_names:  # else an optimizer that has made no update yet would miss its own count of them
            held.setdefault("step", torch.tensor(0.0))
        return {key: held[key] for key in state_names}

    def finish_loading(self, updates: list[int]) -> None:
        flats = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        for index, flat in enumerate(flats):
            if flat in self.optimizer.state:
                self.optimizer.state[flat]["step"] = torch.tensor(float(updates[self._group_of(index)]))
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero.update_lp_params()
            return
        for index, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            self.zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            pieces = self.zero.fp16_partitioned_groups[index]
            for piece, fresh in zip(
                pieces, self.zero.unflatten(self.zero.fp16_partitioned_groups_flat[index], pieces), strict=True
            ):
                piece.data = fresh.data
        # Small parameters stay gathered between steps; gather them again from the loaded partitions.
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].partition(self.zero.persistent_parameters, has_been_updated=False)
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)
