"""A plan for people, as tables, and for programs, as plain values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from accel_train.optim.group_table import group_table
from accel_train.optim.lr_scaling import lr_factor, scaling_in_words
from accel_train.optim.param_groups import GroupPlan
from accel_train.optim.schedule import num_warmup_steps
from accel_train.tools.memory import MemoryPart, device_bytes
from accel_train.tools.plan.run_plan import RunPlan


def as_dict(plan: RunPlan) -> dict[str, Any]:
    """The whole plan for programs: steps, groups, every parameter, memory in bytes, hazards, advice."""
    config, split, length = plan.config, plan.split, plan.length
    return {
        "engine": split.engine,
        "world_size": split.world_size,
        "global_batch_size": config.data.global_batch_size,
        "micro_batch_size": split.micro_batch_size,
        "num_micro_batches": split.num_micro_batches,
        "num_samples": length.num_samples,
        "steps_per_epoch": length.steps_per_epoch,
        "total_steps": length.total_steps,
        "warmup_steps": num_warmup_steps(config.schedule, length.total_steps),
        "max_grad_norm": config.optimizer.max_grad_norm,
        "lr_factor": lr_factor(config.optimizer, config.data.global_batch_size),
        **_groups_as_dict(plan.model, plan.groups[0]),
        "phases": [
            {"name": phase.name, "start": phase.start, "end": phase.end, **_groups_as_dict(plan.model, groups)}
            for phase, groups in zip(plan.phases[1:], plan.groups[1:], strict=True)
        ],
        "memory": [asdict(part) for part in plan.memory],
        "memory_bytes": device_bytes(plan.memory),
        "hazards": plan.hazards,
        "notes": plan.notes,
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
    console.print("[bold]Memory of one rank[/bold]: each part at the peak of a step, and when it is largest itself")
    console.print(_memory_table(plan.memory))
    if not plan.dry.has_loss:
        console.print("[dim]Without the loss's own memory, which depends on the data.[/dim]")


def print_remarks(plan: RunPlan, console: Console) -> None:
    """Notes, hazards and advice, the last things on the page."""
    for title, lines in (("Worth knowing", plan.notes), ("Hazards", plan.hazards)):
        if lines:
            console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            console.print(f"[yellow]•[/yellow] {escape(line)}")
    if plan.advice:
        console.print("\n[bold]Advice[/bold] (`advice: off` silences it)")
    for line in plan.advice:
        console.print(f"[yellow]•[/yellow] {escape(line)}")


def _run_table(plan: RunPlan) -> Table:
    config, data, schedule, split, length = plan.config, plan.config.data, plan.config.schedule, plan.split, plan.length
    ranks = "1 rank" if split.world_size == 1 else f"{split.world_size} ranks"
    micro = "1 micro-batch" if split.num_micro_batches == 1 else f"{split.num_micro_batches} micro-batches"
    warmup = num_warmup_steps(schedule, length.total_steps)
    epochs = length.total_steps / length.steps_per_epoch
    scaling = scaling_in_words(config.optimizer, data.global_batch_size)
    table = Table.grid(padding=(0, 2))
    for key, value in {
        "run": config.run_dir,
        "engine": f"{split.engine} on {ranks}, {config.precision}",
        "data": f"{length.num_samples:,} samples of {data.path} ({data.train_split})",
        "batch": f"{data.global_batch_size} = {ranks} x {micro} of {data.micro_batch_size}",
        "length": f"{length.total_steps:,} steps = {epochs:.4g} epochs of {length.steps_per_epoch:,}",
        "schedule": f"{schedule.name}, {warmup:,} steps of warmup, lowest scale {schedule.min_lr_ratio:g}",
        **({"scaling": scaling} if scaling else {}),
    }.items():
        table.add_row(f"[bold]{key}[/bold]", value)
    return table


def _memory_table(parts: Sequence[MemoryPart]) -> Table:
    table = Table(box=None, show_footer=True, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("", "device, in all")
    table.add_column("at the peak", size_text(device_bytes(parts)), justify="right")
    table.add_column("largest", justify="right")
    table.add_column("", "and on a GPU the CUDA context, about 0.5 GB", style="dim")
    for part in parts:
        basis = part.basis + (" (in CPU memory)" if part.on_host else "")
        table.add_row(part.name, size_text(part.num_bytes), size_text(part.most_bytes), basis)
    return table


def size_text(num_bytes: float) -> str:
    """Decimal units: 1 GB = 1e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"
