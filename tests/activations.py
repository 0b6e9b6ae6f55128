"""What a forward pass leaves behind for the backward pass, counted on fake tensors."""

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_train.config.schema import RunConfig
from accel_train.optim.param_groups import GroupPlan, freeze, set_train_mode
from accel_train.tasks.task import Batch
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.step import AUTOCAST


def activation_bytes(model: nn.Module, plan: GroupPlan, config: RunConfig, batch: Batch) -> int:
    """Bytes that the forward pass of one micro-batch leaves behind for the backward pass."""
    model = copy.deepcopy(model)
    dtype = AUTOCAST[config.precision]
    counted = Counting()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")
        freeze(model, plan)
        set_train_mode(model)
        inputs = {name: torch.empty_like(column) for name, column in batch.items()}
    for tensor in (*model.parameters(), *model.buffers(), *inputs.values()):
        counted.ignore(tensor)
    with fake, counted, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        outputs = model(inputs)
        kept = counted.now["activations"]
    del outputs
    return kept
