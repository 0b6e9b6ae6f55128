"""Tables of step time, of what fits, and of scaling."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accel_train.config.schema import RunConfig
from accel_train.tools.dry_run.step import Split
from accel_train.tools.plan.fits import Fit, GraphsThatFit, circumstances
from accel_train.tools.plan.run_plan import RunPlan
from accel_train.tools.plan.scale import PARTS, Scaling
from accel_train.tools.plan.step_time import StepTime
from accel_train.tools.plan.tables import size_text

SHOWN = (1, 2, 8, 16, 64, 256, 1024)


def seconds_text(seconds: float) -> str:
    if seconds >= 172_800:
        return f"{seconds / 86_400:.1f} days"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def print_step_time(plan: RunPlan, found: StepTime | str, console: Console) -> None:
    """`found`: the estimate, or why there is none."""
    console.print("\n[bold]Time of a step[/bold], estimated for this host")
    if isinstance(found, str):
        console.print(f"[dim]Not estimated: {escape(found)}[/dim]")
        return
    table = Table.grid(padding=(0, 3))
    for part, seconds in found.parts.items():
        table.add_row(part, seconds_text(seconds), f"[dim]{seconds / found.seconds:.0%}[/dim]")
    rate = plan.config.data.global_batch_size / found.seconds
    table.add_row(
        "[bold]a step[/bold]", f"[bold]{seconds_text(found.seconds)}[/bold]", f"[dim]{rate:,.0f} samples/s[/dim]"
    )
    steps = plan.length.steps_per_epoch
    table.add_row("an epoch", seconds_text(steps * found.seconds), f"[dim]{steps:,} steps[/dim]")
    table.add_row("the run", seconds_text(plan.length.total_steps * found.seconds), "[dim]without evaluation[/dim]")
    console.print(table)
    speed = found.flops / found.seconds / 1e9
    console.print(f"[dim]{found.flops / 1e9:,.3g} GFLOP in a step on each rank: {speed:,.3g} GFLOP/s.[/dim]")


def print_fits(
    found: Sequence[Fit],
    graphs: GraphsThatFit | None,
    limit: int,
    config: RunConfig,
    split: Split,
    console: Console,
) -> None:
    console.print(f"\n[bold]Largest micro_batch_size in {size_text(limit)}[/bold] ({circumstances(config, split)})")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("engine")
    for heading in ("blocks kept", "memory", "blocks recomputed", "memory"):
        table.add_column(heading, justify="right")
    for kept, recomputed in zip(found[::2], found[1::2], strict=True):
        cells = [cell for fit in (kept, recomputed) for cell in (_size(fit), size_text(fit.num_bytes))]
        table.add_row(kept.engine, *cells)
    console.print(table)
    console.print(
        f"[dim]In brackets: the largest that divides global_batch_size {config.data.global_batch_size}. Leave a fifth free "
        "for libraries and fragmentation.[/dim]"
    )
    if graphs is not None and graphs.kept_graphs > split.kept_graphs:
        console.print(
            f"At micro_batch_size {split.micro_batch_size} {graphs.kept_graphs} of {split.num_micro_batches} graphs fit "
            f"({size_text(graphs.num_bytes)}): with compute.kept_graphs={graphs.kept_graphs} in place of "
            f"{split.kept_graphs} a step in which all trains takes about {graphs.share_of_time:.2f} of its time."
        )


def _size(fit: Fit) -> str:
    return f"{fit.micro_batch_size:,} ({fit.dividing:,})" if fit.micro_batch_size else "does not fit"


def print_scaling(found: Scaling, engine: str, console: Console) -> None:
    """The step by part for one engine, then the efficiency of all of them."""
    points = found.points[engine]
    shown = [point for point in points if point.num_gpus in SHOWN or point is points[-1]]
    console.print(f"\n[bold]Scaling with {engine}[/bold], a model: each GPU keeps its micro-batches")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    there = [part for part in PARTS if any(point.parts[part] for point in points)]
    for heading in ("GPUs", "batch", *there, "step", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in shown:
        parts = [seconds_text(point.parts[part]) if point.parts[part] else "" for part in there]
        table.add_row(
            f"{point.num_gpus:,}",
            f"{point.global_batch_size:,}",
            *parts,
            seconds_text(point.seconds),
            f"{point.efficiency:.0%}",
        )
    console.print(table)
    console.print("[dim]Communication is what computing does not hide.[/dim]")
    console.print("\n[bold]Efficiency by engine[/bold]")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("engine")
    for point in shown:
        table.add_column(f"{point.num_gpus:,}", justify="right")
    table.add_column("first bottleneck")
    for name, others in found.points.items():
        cells = [f"{point.efficiency:.0%}" for point in others if point.num_gpus in {one.num_gpus for one in shown}]
        table.add_row(name, *cells, bottleneck_text(found, name))
    console.print(table)


def bottleneck_text(found: Scaling, engine: str) -> str:
    first = found.bottleneck(engine)
    if first is None:
        return f"none up to {found.points[engine][-1].num_gpus:,} GPUs"
    return f"{first[1]}, from {first[0]:,} GPUs"
