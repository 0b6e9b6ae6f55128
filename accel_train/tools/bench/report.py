"""What `bench` found, for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accel_train.tools.bench.checkpoint_costs import CheckpointCosts
from accel_train.tools.bench.loader_rates import LoaderRates
from accel_train.tools.bench.training import Training

NOTICED_WAITING = 0.02
"""Share of the time from which on a cause is named."""


def show_training(found: Training, console: Console) -> None:
    batch = found.global_batch_size
    cut = f"{found.world_size} rank{'s' * (found.world_size > 1)} x {found.micro_batches} micro-batch"
    rows = {
        "launch": f"{found.engine} on {found.world_size} x {found.device}, {found.precision}; a global batch of {batch} is "
        f"{cut}{'es' * (found.micro_batches > 1)}",
        "samples/s": f"{found.samples_per_second:.4g} ± {found.samples_per_second_spread:.2g} "
        f"(a step takes {found.step_seconds:.4g} s)",
        "waiting for data": f"{found.waiting_for_data:.1%} of the time{_read_ahead(found)}",
        "loader alone": f"{found.loader_samples_per_second:.4g} samples/s, "
        f"{found.loader_samples_per_second / found.samples_per_second:.2g} x what the steps take",
        "model FLOP utilisation": f"{found.mfu:.1%} of {escape(found.peak)} "
        f"({found.model_flops_per_sample / 1e9:.4g} GFLOP a sample)",
        "peak memory": ", ".join(f"{gib:.2f}" for gib in found.peak_memory_gib)
        + " GiB by rank"
        + (", of the process" if found.device == "cpu" else ", of the device")
        + _shortages(found.memory_shortages),
        "communication": f"{found.communication:.1%} of a step, {found.communication_exposed:.1%} with nothing else going on"
        if found.world_size > 1
        else "none, one rank",
        "against a bare loop": _ratio(
            found.to_bare_loop, found.not_compared, "of its samples/s, batches in memory, each share at once"
        ),
        "cost of micro-batches": _ratio(
            found.to_whole_batch,
            found.not_compared or "none, there is one",
            "x the time of the same global batch with each share at once",
        ),
    }
    _show(rows, console)


def show_data(found: LoaderRates, device: str, console: Console) -> None:
    console.print(f"The steps take {found.needed:.4g} samples/s when batches lie in memory. The loader alone:")
    table = Table("workers on each rank", "samples/s", "x what the steps take", box=None, pad_edge=False)
    for workers, rate in found.rates.items():
        mark = " (data.num_workers)" if workers == found.configured else ""
        table.add_row(f"{workers}{mark}", f"{rate:.4g}", f"{rate / found.needed:.2f}")
    console.print(table)
    console.print(in_words(found, device), soft_wrap=True)


def in_words(found: LoaderRates, device: str) -> str:
    """How many workers are enough."""
    if found.enough is None:
        return (
            f"Not enough with one worker for each of a rank's {found.cpus} CPUs: it would take about {found.estimate}. "
            "Store images at the size they are trained at, or give each rank more CPUs."
        )
    shared = (
        " Training computes on the same CPUs, so it waits for what the workers take of them." if device == "cpu" else ""
    )
    if found.enough == found.configured:
        return f"data.num_workers={found.configured} is enough, and no fewer are.{shared}"
    return f"data.num_workers={found.enough} is enough (it is {found.configured}).{shared}"


def show_checkpoint(costs: CheckpointCosts, console: Console) -> None:
    rows = {
        "checkpoint": f"{costs.mebibytes:.0f} MiB of weights and AdamW state",
        "raw write": f"{costs.raw_write_seconds:.3g} s for as many bytes, synced",
        "save": f"{costs.save_seconds:.3g} s, {costs.save_to_raw_write:.2f} ± {costs.save_to_raw_write_spread:.2g} x the "
        "raw write",
        "save in the background": f"training stands still for {costs.background_stall_seconds:.3g} s, "
        f"{costs.background_stall_to_save:.1%} of a save, and {costs.background_slows_to_save:.1%} are lost with what steps "
        f"take longer meanwhile; on disk after {costs.background_to_save:.2f} x a save's time",
        "load": f"{costs.load_seconds:.3g} s; memory beside the model's: {costs.load_memory_to_size:.1%} of the checkpoint",
    }
    _show(rows, console)


def _ratio(ratio: tuple[float, float] | None, missing: str, what: str) -> str:
    return missing if ratio is None else f"{ratio[0]:.3f} ± {ratio[1]:.2g} {what}"


def _read_ahead(found: Training) -> str:
    if found.waiting_for_data < NOTICED_WAITING or not 0 < found.read_ahead < found.micro_batches:
        return ""
    return (
        f"; a step takes {found.micro_batches} micro-batches of a rank, and {found.read_ahead} are read ahead "
        "(data.num_workers x data.prefetch_batches). Where memory allows, raise data.prefetch_batches until all are."
    )


def _shortages(number: int) -> str:
    if number == 0:
        return ""
    return (
        f"; it was full {number} times, and then torch waits and gives back what it had cached. "
        "Keep fewer graphs (compute.kept_graphs), take a smaller data.micro_batch_size, or start with "
        "PYTORCH_ALLOC_CONF=expandable_segments:True."
    )


def _show(rows: dict[str, str], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    console.print(table)
