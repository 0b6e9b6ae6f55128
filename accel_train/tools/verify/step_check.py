"""`accel-train verify CONFIG`: one step as launched against the same step on one process with the whole batch."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from accel_train.config.schema import RunConfig
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import CheckFailed, UserError
from accel_train.phases import phase_at
from accel_train.run import Run
from accel_train.tools.verify.aside import newest_checkpoint, run_aside
from accel_train.tools.verify.comparison import Reading, compare
from accel_train.tools.verify.launched import Launched, take_launched_step
from accel_train.tools.verify.plain import find_plain_gradients
from accel_train.tools.verify.plain_update import take_plain_update
from accel_train.tools.verify.report import as_json as reading_as_json
from accel_train.tools.verify.report import print_tables, step_lines
from accel_train.tools.verify.verdict import FP32_TOLERANCE, TOLERANCES, Tolerance, problems


def verify_step(
    config: RunConfig,
    *,
    as_configured: bool,
    tolerance: float | None,
    step: int | None,
    at_once: int | None,
    as_json: bool,
) -> None:
    """Prints a table or JSON. Raises CheckFailed above tolerance, UserError for a bad configuration.

    Both steps are taken in float32 unless `as_configured`. `step` takes the batch and the learning rate of another step,
    with the weights that the run would start from now.
    """
    engine = build_engine(config)
    if not as_configured:
        config = config.model_copy(update={"precision": "fp32"})
        _forbid_tf32()
    limits = Tolerance(tolerance or TOLERANCES[config.precision], tolerance or FP32_TOLERANCE)
    say: Callable[[str], None] = print if engine.is_main and not as_json else lambda line: None
    try:
        checkpoint = newest_checkpoint(config, engine)
        say(_about(config, engine, checkpoint))
        with run_aside(config, engine, checkpoint) as run:
            updates = [run.state.updates_since(group.first_step) for group in run.plan.groups]
            has_state = run.state.step > 0 or bool(run.state.carried_updates)
            _go_to(run, step, say)
            launched = take_launched_step(run, has_state=has_state)
            reading, how = _judged(run, launched, checkpoint, updates, at_once)
        found = [] if reading is None else problems(reading, limits)
        if reading is not None and as_json:
            print(json.dumps({"compared_with": how, **reading_as_json(reading, limits)}, indent=1))
        elif reading is not None:
            say(f"compared with: {how}")
            print_tables(reading, limits, Console(highlight=False))
            for line in step_lines(reading, limits):
                say(line)
        found = engine.gather_objects(found)[0]
        if found:
            raise CheckFailed("the step is wrong:" + "".join(f"\n- {problem}" for problem in found), code="AT700")
        say("the step as launched is that of one process with the whole batch")
    finally:
        engine.close()


def _forbid_tf32() -> None:
    """GPUs would round the factors of convolutions to 10 bits, and pick another kernel for another batch size."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _about(config: RunConfig, engine: Engine, checkpoint: Path | None) -> str:
    start = checkpoint or config.initialize_from or "the model's starting weights"
    return (
        f"engine {engine.launch.engine} on {engine.world_size} x {engine.device.type}, {config.precision}, micro-batches of "
        f"{config.data.micro_batch_size}, against one process; weights: {start}"
    )


def _go_to(run: Run, step: int | None, say: Callable[[str], None]) -> None:
    if step is None and run.state.step >= run.total_steps:
        step = run.total_steps - 1
    if step is None:
        return
    if step >= run.total_steps:
        raise UserError(f"--step is {step}; the run has steps 0 to {run.total_steps - 1}.")
    if (phase := phase_at(run.phases, step)) is not run.phase:
        raise UserError(
            f"--step {step} is in phase {phase.name}, and the run would go on in phase {run.phase.name}, where other towers "
            "train. Choose a step of that phase."
        )
    say(f"batch and learning rates of step {step}, with the weights of step {run.state.step}")
    run.state.step = step


def _judged(
    run: Run, launched: Launched, checkpoint: Path | None, updates: list[int], at_once: int | None
) -> tuple[Reading | None, str]:
    """The reading, on rank 0, and what the step was compared with."""
    engine = run.engine
    engine.release()

    def judge() -> tuple[Reading | None, str]:
        if not engine.is_main:
            return None, ""
        plain = find_plain_gradients(run, launched, checkpoint, at_once)
        return compare(run, launched, plain, take_plain_update(run, launched, updates)), plain.how

    return engine.together(judge)
