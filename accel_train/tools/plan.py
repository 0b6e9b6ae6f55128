"""`accel-train plan`: what a run would do, from shapes and sizes alone."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from accel_train.advice import before_training
from accel_train.config.rules import check_kept_graphs, num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.data.order import Order
from accel_train.engine.launch import read_launch
from accel_train.optim.group_table import group_table
from accel_train.optim.lr_scaling import lr_factor, scaling_in_words
from accel_train.optim.param_groups import GroupPlan
from accel_train.optim.schedule import num_warmup_steps
from accel_train.phases import Phase, plan_phase_groups, plan_phases
from accel_train.tasks.build import build_task
from accel_train.tools.hazards import hazards
from accel_train.tools.lr_picture import PhaseRates
from accel_train.tools.memory import MemoryPart, memory_parts


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that is known of a run before it starts."""

    config: RunConfig
    model: nn.Module
    """On the meta device: names and shapes."""
    phases: list[Phase]
    groups: list[GroupPlan]
    """One for each phase."""
    engine: str
    world_size: int
    num_micro_batches: int
    num_samples: int
    steps_per_epoch: int
    total_steps: int
    memory: list[MemoryPart]
    hazards: list[str]
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


def plan(
    config: RunConfig, *, as_json: bool = False, picture: str | None = None, world_size: int | None = None
) -> None:
    """Prints the plan, for `world_size` ranks or as launched; with `picture`, draws the learning rates to that file."""
    if read_launch(config).rank != 0:
        return
    run_plan = make_plan(config, world_size=world_size)
    if as_json:
        print(json.dumps(as_dict(run_plan), indent=1, ensure_ascii=False))
    else:
        print_plan(run_plan, Console(highlight=False))
    if picture is not None:
        from accel_train.tools.lr_picture import draw_learning_rates

        draw_learning_rates(run_plan.rates(), picture)


def make_plan(config: RunConfig, *, world_size: int | None = None) -> RunPlan:
    """Raises UserError for what would stop `train` too: a batch that can't be split, a parameter without a tower."""
    launch = read_launch(config)
    world_size = world_size or launch.world_size
    micro_batches = num_micro_batches(config, world_size)
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
    phases = plan_phases(config, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps)
    groups = [plan_phase_groups(model, phases, phase) for phase in phases]
    return RunPlan(
        config=config,
        model=model,
        phases=phases,
        groups=groups,
        engine=launch.engine,
        world_size=world_size,
        num_micro_batches=micro_batches,
        num_samples=order.num_samples,
        steps_per_epoch=order.steps_per_epoch,
        total_steps=total_steps,
        memory=_largest(
            [
                memory_parts(
                    model, plan, task, engine=launch.engine, world_size=world_size, offload=launch.offload_optimizer
                )
                for plan in groups
            ]
        ),
        hazards=hazards(
            task,
            phases,
            groups,
            engine=launch.engine,
            num_micro_batches=micro_batches,
            num_samples=order.num_samples,
            steps_per_epoch=order.steps_per_epoch,
            total_steps=total_steps,
        ),
        advice=_advice(config, phases, groups, order.num_samples),
    )


def _advice(config: RunConfig, phases: list[Phase], groups: list[GroupPlan], num_samples: int) -> list[str]:
    """Each piece once, at the first phase that it is true of."""
    found: dict[str, str] = {}
    for phase, plan in zip(phases, groups, strict=True):
        for line in before_training(config, phase.optimizer, plan, num_samples):
            found.setdefault(line, f"Phase {phase.name}: {line}" if len(phases) > 1 else line)
    return list(found.values())


def as_dict(plan: RunPlan) -> dict[str, Any]:
    """The whole plan for programs: steps, groups, every parameter, memory in bytes, hazards, advice."""
    return {
        "engine": plan.engine,
        "world_size": plan.world_size,
        "global_batch_size": plan.config.data.global_batch_size,
        "micro_batch_size": plan.config.data.micro_batch_size,
        "num_micro_batches": plan.num_micro_batches,
        "num_samples": plan.num_samples,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "warmup_steps": num_warmup_steps(plan.config.schedule, plan.total_steps),
        "max_grad_norm": plan.config.optimizer.max_grad_norm,
        "lr_factor": lr_factor(plan.config.optimizer, plan.config.data.global_batch_size),
        **_groups_as_dict(plan.model, plan.groups[0]),
        "phases": [
            {"name": phase.name, "start": phase.start, "end": phase.end, **_groups_as_dict(plan.model, groups)}
            for phase, groups in zip(plan.phases[1:], plan.groups[1:], strict=True)
        ],
        "memory": [asdict(part) for part in plan.memory],
        "hazards": plan.hazards,
        "advice": plan.advice,
    }


def _groups_as_dict(model: nn.Module, plan: GroupPlan) -> dict[str, Any]:
    owner = {name: group for group in plan.groups for name in group.param_names}
    frozen = {name: part.tower for part in plan.frozen_parts for name in part.param_names}
    parameters = []
    for name, parameter in model.named_parameters():
        group = owner.get(name)
        parameters.append(
            {
                "name": name,
                "shape": list(parameter.shape),
                "frozen": group is None,
                "tower": group.tower if group else frozen[name],
                "group": group.name if group else None,
                "layer": group.layer if group else None,
                "lr": group.lr if group else 0.0,
                "weight_decay": group.weight_decay if group else 0.0,
                "max_grad_norm": group.max_grad_norm if group else None,
            }
        )
    return {"groups": [asdict(group) for group in plan.groups], "parameters": parameters}


def print_plan(plan: RunPlan, console: Console) -> None:
    config = plan.config
    console.print(_run_table(plan))
    console.print("\n[bold]Parameter groups[/bold]", end="")
    console.print(group_table(plan.groups[0]))
    for phase, groups in zip(plan.phases[1:], plan.groups[1:], strict=True):
        console.print(f"[bold]Phase {phase.name}[/bold], steps {phase.start:,} to {phase.end:,}", end="")
        console.print(group_table(groups))
    if config.optimizer.max_grad_norm is not None:
        console.print(f"The gradient norm over all groups is clipped to {config.optimizer.max_grad_norm:g}.\n")
    console.print("[bold]Memory of one rank[/bold], at the peak of a step")
    console.print(_memory_table(plan.memory))
    if plan.hazards:
        console.print("\n[bold]Worth knowing[/bold]")
    for hazard in plan.hazards:
        console.print(f"[yellow]•[/yellow] {hazard}", markup=True)
    if plan.advice:
        console.print("\n[bold]Advice[/bold] (`advice: off` silences it)")
    for line in plan.advice:
        console.print(f"[yellow]•[/yellow] {line}")


def _run_table(plan: RunPlan) -> Table:
    config, data, schedule = plan.config, plan.config.data, plan.config.schedule
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    micro = "1 micro-batch" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} micro-batches"
    warmup = num_warmup_steps(schedule, plan.total_steps)
    epochs = plan.total_steps / plan.steps_per_epoch
    scaling = scaling_in_words(config.optimizer, data.global_batch_size)
    table = Table.grid(padding=(0, 2))
    for key, value in {
        "run": config.run_dir,
        "engine": f"{plan.engine} on {ranks}, {config.precision}",
        "data": f"{plan.num_samples:,} samples of {data.path} ({data.train_split})",
        "batch": f"{data.global_batch_size} = {ranks} x {micro} of {data.micro_batch_size}",
        "length": f"{plan.total_steps:,} steps = {epochs:.4g} epochs of {plan.steps_per_epoch:,}",
        "schedule": f"{schedule.name}, {warmup:,} steps of warmup, lowest scale {schedule.min_lr_ratio:g}",
        **({"scaling": scaling} if scaling else {}),
    }.items():
        table.add_row(f"[bold]{key}[/bold]", value)
    return table


def _largest(memories: list[list[MemoryPart]]) -> list[MemoryPart]:
    """Of the phases' memory, that of the one which needs most on the device."""
    return max(memories, key=lambda parts: sum(part.num_bytes for part in parts if not part.on_host))


def _memory_table(parts: list[MemoryPart]) -> Table:
    table = Table(box=None, show_footer=True, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column("part", "device, in all")
    table.add_column("size", _size(sum(part.num_bytes for part in parts if not part.on_host)), justify="right")
    table.add_column("basis", "and the CUDA context, about 0.5 GB", style="dim")
    for part in parts:
        table.add_row(part.name, _size(part.num_bytes), part.basis + (" (in CPU memory)" if part.on_host else ""))
    return table


def _size(num_bytes: int) -> str:
    """Decimal units: 1 GB = 1e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"
