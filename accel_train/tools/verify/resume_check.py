"""`accel-train verify RUN --resume`: steps after a checkpoint are taken again and compared with what the run kept."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from accel_train.agreement import agree
from accel_train.checkpoint.files import WEIGHT, Reader
from accel_train.checkpoint.folders import folder_name
from accel_train.config.schema import RunConfig
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import CheckFailed, UserError
from accel_train.ledger import LEDGER_FILE, LedgerContent, Line, read_ledger
from accel_train.optim.optimizers import state_names
from accel_train.resume import about_launch
from accel_train.run import Run
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.verify.aside import run_aside, usable_checkpoints
from accel_train.train import advance, global_batches, step_taken

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""Of losses and gradient norms, relative, where another launch rounds otherwise: differences grow from step to step."""


@dataclass(slots=True)
class Replay:
    """What was found; the same on every rank."""

    start: int
    """The step of the checkpoint that it began with."""
    end: int
    exact: bool
    """Whether numbers had to be equal to the last bit."""
    other_launch: list[str]
    """What differs from the launch that took these steps first."""
    tolerance: float
    largest_difference: float = 0.0
    """Relative, of any loss or gradient norm."""
    checkpoints: list[int] = field(default_factory=list)
    """Steps whose checkpoints were compared."""
    problems: list[str] = field(default_factory=list)


def verify_resume(config: RunConfig, *, num_steps: int | None, tolerance: float | None, as_json: bool) -> None:
    """Prints what was compared. Raises CheckFailed at the first step that differs, UserError if none can be compared."""
    engine = build_engine(config)
    say: Callable[[str], None] = print if engine.is_main and not as_json else lambda line: None
    try:
        path = Path(config.run_dir) / LEDGER_FILE
        ledger = engine.together(lambda: read_ledger(path))
        if ledger.complaint is not None:
            raise CheckFailed(f"{ledger.complaint}. What it says can't be trusted.")
        start, end = engine.gather_objects(engine.together(lambda: _span(config, ledger, num_steps)))[0]
        folder = Path(config.run_dir) / "checkpoints" / folder_name(start)
        replay = engine.gather_objects(_planned(config, engine, ledger, start, end, tolerance))[0]
        say(f"{config.run_dir}: steps {start + 1} to {end} again, from {folder.name}, on {_launch(engine)}")
        say(
            "the same launch as then: numbers must be equal to the last bit"
            if replay.exact
            else f"another launch than then ({', '.join(replay.other_launch)}): numbers may differ by {replay.tolerance:g}"
        )
        with run_aside(config, engine, folder) as run:
            if run.state.step != start:
                raise CheckFailed(f"{folder} can't be read as a run's checkpoint.")
            _replay(run, Path(config.run_dir), ledger.steps(), replay)
        if as_json and engine.is_main:
            print(json.dumps({"passed": not replay.problems, **asdict(replay)}, indent=1))
        if replay.problems:
            raise CheckFailed("\n- ".join(["the replay is not the run:", *replay.problems]), code="AT701")
        compared = ", ".join(str(step) for step in replay.checkpoints)
        of_steps = (
            f"checkpoint of step {compared}" if len(replay.checkpoints) == 1 else f"checkpoints of steps {compared}"
        )
        say(
            f"{end - start} steps with the same samples; losses and gradient norms "
            + ("equal to the last bit" if replay.exact else f"within {replay.largest_difference:.1e}")
            + (f"; weights and optimizer state compared with the {of_steps}" if compared else "")
        )
    finally:
        engine.close()


def _launch(engine: Engine) -> str:
    return f"{engine.launch.engine}, {engine.world_size} x {engine.device.type}"


def _span(config: RunConfig, ledger: LedgerContent, num_steps: int | None) -> tuple[int, int]:
    """From which checkpoint, and to which step."""
    steps = [int(folder.name[5:]) for folder in usable_checkpoints(config)]  # newest first
    known = ledger.steps()
    if num_steps is None:
        if len(steps) < 2:
            raise UserError(
                f"{config.run_dir} holds {len(steps)} checkpoints; a replay goes from one to the next. Train on "
                "(checkpoint.save_every, checkpoint.keep_last), or name a number of steps that the ledger has after one "
                "(--steps)."
            )
        start, end = steps[1], steps[0]
    else:
        starts = [step for step in steps if all(step + k in known for k in range(1, num_steps + 1))]
        if not starts:
            raise UserError(
                f"--steps is {num_steps}; no checkpoint of {config.run_dir} has so many steps after it in {LEDGER_FILE}. "
                f"There are checkpoints of steps {', '.join(map(str, steps)) or 'none'}, and the ledger ends with step "
                f"{max(known, default=0)}."
            )
        start, end = starts[0], starts[0] + num_steps
    missing = [step for step in range(start + 1, end + 1) if step not in known]
    if missing:
        raise UserError(
            f"{config.run_dir}: {LEDGER_FILE} has no line for step {missing[0]}, so there is nothing to compare."
        )
    return start, end


def _planned(
    config: RunConfig, engine: Engine, ledger: LedgerContent, start: int, end: int, tolerance: float | None
) -> Replay:
    now, then = about_launch(config, engine), [ledger.launch_of(step) or {} for step in range(start + 1, end + 1)]
    now = json.loads(json.dumps(now))
    differing = sorted({key for launch in then for key in now if launch.get(key) != now[key]})
    precisions = {str(launch.get("precision", "fp32")) for launch in then} | {config.precision}
    allowed = tolerance or max(TOLERANCES[precision] for precision in precisions)
    return Replay(start, end, exact=not differing, other_launch=differing, tolerance=0.0 if not differing else allowed)


def _replay(run: Run, run_dir: Path, known: dict[int, Line], replay: Replay) -> None:
    """Takes the steps and stops at the first one that differs."""
    if replay.end > run.phase.end:
        raise UserError(
            f"a phase begins at step {run.phase.end}, between the checkpoint of step {replay.start} and step {replay.end}, "
            f"and a replay stays in one phase. Take --steps {run.phase.end - replay.start} or fewer."
        )
    total = replay.end - replay.start
    with RowProgress("steps", total, shown=run.engine.is_main, unit="steps") as progress:
        for batch in global_batches(run):
            agreed = agree(run, batch)
            losses, norms = advance(run, batch, agreed.rows)
            progress.advance()
            _compare_line(known[run.state.step], step_taken(run, batch, agreed, losses, norms).line(), replay)
            evaluates = run.config.data.valid_split is not None and run.is_due(run.config.evaluation.evaluate_every)
            if evaluates or run.is_due(run.config.checkpoint.save_every):
                run.engine.share_buffers()  # as an evaluation and a checkpoint do
            if not replay.problems:
                _compare_checkpoint(run, run_dir / "checkpoints" / folder_name(run.state.step), replay)
            if replay.problems or run.state.step == replay.end:
                return


def _compare_line(then: Line, now: Line, replay: Replay) -> None:
    step = now["step"]
    if (then["samples"], then["num_read"]) != (now["samples"], now["num_read"]):
        replay.problems.append(
            f"step {step}: other samples than then. The order, its seed, or what can be read of the dataset has changed"
        )
        return
    if then["losses"].keys() != now["losses"].keys():
        replay.problems.append(
            f"step {step}: the losses are {', '.join(now['losses'])}, then {', '.join(then['losses'])}"
        )
        return
    pairs = {f"loss {name}": (then["losses"][name], now["losses"][name]) for name in now["losses"]}
    pairs["gradient norm"] = then["grad_norm"], now["grad_norm"]
    for what, (old, new) in pairs.items():
        difference = _difference(float.fromhex(old), float.fromhex(new))
        replay.largest_difference = max(replay.largest_difference, difference)
        if difference > replay.tolerance:
            replay.problems.append(
                f"step {step}: {what} is {float.fromhex(new):.9g}, then {float.fromhex(old):.9g} (relative difference "
                f"{difference:.1e}): what is computed from the same samples has changed (the data, the code, or the machine)"
            )


def _difference(then: float, now: float) -> float:
    if then == now or (math.isnan(then) and math.isnan(now)):
        return 0.0
    difference = abs(now - then) / max(abs(then), 1e-12)
    return difference if math.isfinite(difference) else math.inf


def _compare_checkpoint(run: Run, folder: Path, replay: Replay) -> None:
    """This rank's shards with the checkpoint of the present step, if there is one."""
    if not run.engine.gather_objects(folder.is_dir())[0]:
        return
    found = run.engine.gather_objects(run.engine.together(lambda: _other_shards(run, folder, replay)))
    differing = sorted({name for names in found for name in names})
    if differing:
        listed = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        replay.problems.append(f"step {run.state.step}: the checkpoint holds other values of {listed}")
    replay.checkpoints.append(run.state.step)


def _other_shards(run: Run, folder: Path, replay: Replay) -> list[str]:
    """Names of weights, and of optimizer state, that differ; of state only where it must be equal to the last bit."""
    reader, names = Reader(folder), []
    for shard in run.engine.shards(state_names(run.config.optimizer)):
        held = {WEIGHT: shard.weight, **(shard.state if replay.exact else {})}
        for kind, piece in held.items():
            then = torch.empty(piece.shape, dtype=piece.dtype)
            reader.read_into(then, kind, shard.name, shard.offset)
            now = piece.detach().cpu()
            if replay.exact:
                equal = torch.equal(now, then)
            else:
                equal = float((now - then).norm()) <= replay.tolerance * max(float(then.norm()), 1e-3)
            if not equal:
                names.append(shard.name if kind == WEIGHT else f"{kind} of {shard.name}")
    return names
