"""`accel-train profile`: where the time of a step goes, by phase of the loop and by operator, and a trace to look at."""

import json
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import profiler

from accel_train.config.schema import RunConfig
from accel_train.errors import UserError
from accel_train.interrupts import uninterrupted
from accel_train.progress import Meter
from accel_train.run import Run
from accel_train.tools.bench.step_rates import hold_weights
from accel_train.tools.bench.training import as_bench
from accel_train.tools.profile.phases import Row, operator_rows, phase_rows, step_seconds
from accel_train.tools.profile.recording import communication_shares, record
from accel_train.tools.rehearsal import rehearsal
from accel_train.tools.row_progress import RowProgress
from accel_train.train import global_batches, one_step, save


@dataclass(frozen=True, slots=True)
class Length:
    warmup: int
    """Steps before the record begins."""
    steps: int
    """Steps that are recorded."""
    top: int
    """Operators in the table."""
    with_checkpoint: bool
    """Whether a checkpoint is recorded too, which takes its size on the disk for temporary files."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one rank found."""

    rank: int
    steps: int
    device: str
    step_seconds: float
    """Mean of the recorded steps, the profiler's own cost in it."""
    phases: list[Row]
    operators: list[Row]
    communication: float
    """Share of a step in which data was under way between ranks."""
    communication_exposed: float
    """Share of a step in which it was, and nothing was computed meanwhile."""
    trace: str
    """File of this rank, for Perfetto or chrome://tracing."""


def profile(config: RunConfig, length: Length, *, trace: str | None, as_json: bool) -> None:
    """Records some steps of the run that `train` would set up, leaves each rank's trace, and prints what rank 0 found."""
    path = Path(trace or Path(config.run_dir) / "profile" / "trace.json.gz")
    with rehearsal(as_bench(config), quiet=True) as run:
        own = run.engine.together(lambda: place_of_trace(path, run.engine.rank, run.engine.world_size))
        found = profile_steps(run, length, own)
        everyone = run.engine.gather_objects(found)
        if run.engine.is_main:
            if as_json:
                print(json.dumps([asdict(one) for one in everyone], indent=1))
            else:
                show(everyone, Console(highlight=False))


def place_of_trace(path: Path, rank: int, world_size: int) -> Path:
    """The file of this rank, in a folder that can be written. Raises UserError."""
    name, ending = path.name, ""
    for known in (".json.gz", ".json"):
        if name.endswith(known):
            name, ending = name.removesuffix(known), known
            break
    else:
        raise UserError(f"--trace: {path} must end in .json or .json.gz, which viewers of traces open.")
    own = path if world_size == 1 else path.with_name(f"{name}_rank_{rank:05d}{ending}")
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=own.parent):
            pass
    except OSError as error:
        raise UserError(f"--trace: {own.parent} can't be written: {error.strerror}. Name another file.") from error
    return own


def profile_steps(run: Run, length: Length, path: Path) -> Profile:
    """Called by all ranks together."""
    hold_weights(run)
    engine, meter = run.engine, Meter(run.engine.device)
    total = length.warmup + length.steps
    with (
        RowProgress("steps", total, done=0, shown=engine.is_main, unit="steps") as progress,
        closing(global_batches(run)) as batches,
    ):

        def step() -> None:
            one_step(run, next(batches), meter)
            progress.advance(1)

        for _ in range(length.warmup):
            step()
        found = record(engine, step, length.steps, then=(lambda: save(run)) if length.with_checkpoint else lambda: None)
    write_trace(found, path)
    communication, exposed = communication_shares(found)
    return Profile(
        rank=engine.rank,
        steps=length.steps,
        device=engine.device.type,
        step_seconds=step_seconds(found, length.steps),
        phases=phase_rows(found, length.steps),
        operators=operator_rows(found, length.steps, length.top),
        communication=communication,
        communication_exposed=exposed,
        trace=str(path),
    )


def write_trace(found: profiler.profile, path: Path) -> None:
    """Ctrl-C waits for the end, so that no torn file is left."""
    with uninterrupted():
        found.export_chrome_trace(str(path))


def show(everyone: list[Profile], console: Console) -> None:
    """Rank 0's tables, and what the others' steps took where there are any."""
    first = everyone[0]
    on_device = first.device == "cuda"
    title = f"{first.steps} steps of {first.step_seconds:.4g} s, with the profiler's own cost"
    console.print(table_of(f"Phases of a step: {title}", first.phases, on_device=on_device))
    console.print(table_of("Operators", first.operators, on_device=on_device))
    if len(everyone) > 1:
        console.print(
            f"communication: {first.communication:.1%} of a step, {first.communication_exposed:.1%} with nothing else going "
            "on; steps by rank: " + ", ".join(f"{one.step_seconds:.4g} s" for one in everyone),
            soft_wrap=True,
        )
    console.print(f"traces: {escape(', '.join(one.trace for one in everyone))}", soft_wrap=True)


def table_of(title: str, rows: list[Row], *, on_device: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("own ms", "share", "total ms", *(["device ms"] if on_device else []), "calls"):
        table.add_column(column, justify="right")
    for row in rows:
        share = "" if row.share is None else f"{row.share:.1%}"
        device = [f"{1e3 * row.device:.3f}"] if on_device else []
        table.add_row(
            escape(row.name), f"{1e3 * row.own:.3f}", share, f"{1e3 * row.total:.3f}", *device, f"{row.calls:.4g}"
        )
    return table
