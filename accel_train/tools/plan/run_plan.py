"""What a run would do, from shapes and sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from accel_train.advice import before_training
from accel_train.config.rules import check_kept_graphs, num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.data.order import Order
from accel_train.engine.launch import read_launch
from accel_train.optim.param_groups import GroupPlan
from accel_train.phases import Phase, plan_phase_groups, plan_phases
from accel_train.tasks.build import build_task
from accel_train.tasks.task import Task
from accel_train.tools.dry_run.step import DryStep, Split, dry_step
from accel_train.tools.hazards import Length, hazards, notes
from accel_train.tools.lr_picture import PhaseRates
from accel_train.tools.memory import MemoryPart, device_bytes, memory_parts


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that is known of a run before it starts."""

    config: RunConfig
    task: Task
    model: nn.Module
    """On the meta device: names and shapes."""
    phases: list[Phase]
    groups: list[GroupPlan]
    """One for each phase."""
    split: Split
    length: Length
    dry: DryStep
    """The counted step of the phase that needs most memory."""
    memory: list[MemoryPart]
    """Of that phase."""
    hazards: list[str]
    notes: list[str]
    advice: list[str]

    def rates(self) -> list[PhaseRates]:
        """Learning rates over the run."""
        return [
            PhaseRates(
                phase.name,
                phase.start,
                groups,
                phase.schedule,
                [phase.lr_scale(step) for step in range(phase.start, phase.end)],
            )
            for phase, groups in zip(self.phases, self.groups, strict=True)
        ]


def make_plan(config: RunConfig, *, world_size: int | None = None) -> RunPlan:
    """Raises UserError for what would stop `train` too: a batch that can't be split, a parameter without a tower."""
    launch = read_launch(config)
    ranks = world_size or launch.world_size
    split = Split(
        engine=launch.engine,
        world_size=ranks,
        micro_batch_size=config.data.micro_batch_size,
        num_micro_batches=num_micro_batches(config, ranks),
        activation_checkpointing=config.compute.activation_checkpointing,
        offload=launch.offload_optimizer,
        kept_graphs=min(config.compute.kept_graphs, num_micro_batches(config, ranks)),
    )
    task = build_task(config)
    check_kept_graphs(config, engine=launch.engine, compares_whole_batch=task.compares_whole_batch)
    with torch.device("meta"):
        model = task.build_model()
    data = config.data
    order = Order(
        task.num_samples(data.train_split),
        data.global_batch_size,
        seed=config.seed,
        shuffle=data.shuffle,
        last_batch=data.last_batch,
    )
    total_steps = config.max_steps or (config.num_epochs or 0) * order.steps_per_epoch
    length = Length(order.num_samples, order.steps_per_epoch, total_steps)
    phases = plan_phases(config, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps)
    groups = [plan_phase_groups(model, phases, phase) for phase in phases]
    found = [(dry := dry_step(model, plan, task, split), memory_parts(dry, plan, config)) for plan in groups]
    dry, memory = max(found, key=lambda pair: device_bytes(pair[1]))
    return RunPlan(
        config=config,
        task=task,
        model=model,
        phases=phases,
        groups=groups,
        split=split,
        length=length,
        dry=dry,
        memory=memory,
        hazards=hazards(task, phases, groups, split, length),
        notes=notes(task, phases, groups, dry.split),
        advice=_advice(config, phases, groups, order.num_samples),
    )


def _advice(config: RunConfig, phases: Sequence[Phase], groups: Sequence[GroupPlan], num_samples: int) -> list[str]:
    """Each piece once, at the first phase that it is true of."""
    found: dict[str, str] = {}
    for phase, plan in zip(phases, groups, strict=True):
        for line in before_training(config, phase.optimizer, plan, num_samples):
            found.setdefault(line, f"Phase {phase.name}: {line}" if len(phases) > 1 else line)
    return list(found.values())
