"""Training, in order: an engine, a run set up where it goes on, and the loop. Read this file first."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from accel_train.agreement import Agreement, agree, share_failure
from accel_train.checkpoint.rollbacks import lr_reduction
from accel_train.config.faults import Fault
from accel_train.config.schema import RunConfig
from accel_train.data.loader import Step, train_steps
from accel_train.engine.build import build_engine
from accel_train.engine.lost_ranks import lost_ranks
from accel_train.errors import CheckFailed, Stopped, UserError
from accel_train.gradients import all_finite, find_gradients, update
from accel_train.judge import evaluate_and_judge
from accel_train.ledger import StepTaken
from accel_train.nonfinite import pass_over, too_many
from accel_train.optim.clip import total_norm
from accel_train.preflight import preflight
from accel_train.progress import Meter, step_summary
from accel_train.resume import about_run
from accel_train.rollback import roll_back
from accel_train.run import Run
from accel_train.run_log import RunLog
from accel_train.set_up import next_phase, set_up
from accel_train.step import StepLosses
from accel_train.stopping import StopRequest
from accel_train.watch import watch_step
from accel_train.watchdog import watched


def train(config: RunConfig, *, fresh: bool = False, inject: tuple[Fault, ...] = ()) -> dict[str, float]:
    """Trains to the end and returns the last scores. Raises UserError, CheckFailed, or Stopped when it was asked to.

    `inject` are faults to be brought about on the way.
    """
    engine = build_engine(config)
    stop = StopRequest()
    log = engine.together(lambda: RunLog(Path(config.run_dir), is_main=engine.is_main, rank=engine.rank))
    with stop.listening(), watched(engine, Path(config.run_dir), config.hang_minutes):
        try:
            with lost_ranks(engine):
                options = {"--fresh": str(fresh), "--inject": " ".join(fault.text for fault in inject) or "not there"}
                for line in preflight(engine, config, Path(config.run_dir), options):
                    log.say(line)
                run = set_up(config, engine, log, stop, fresh=fresh, inject=inject)
                if run.is_finished:
                    say_nothing_to_do(run)
                elif engine.is_main:
                    for line in stop.watch(Path(config.run_dir), config.max_hours):
                        log.say(line)
                with closing(run.checkpoints):
                    while not run.is_finished:
                        loop(run)
                return run.scores
        except (UserError, CheckFailed, Stopped) as ending:
            log.note(f"ended, {ending.outcome}: {ending}")
            raise
        finally:
            log.close()
            engine.close()


def loop(run: Run) -> None:
    """From the present step to the end of its phase, and into the next phase if there is one, or back to a checkpoint."""
    config, engine, state = run.config, run.engine, run.state
    if state.step == 0 and config.evaluation.at_start and config.data.valid_split is not None:
        evaluate_and_judge(run)
    run.log.start_progress(run.total_steps, state.step)
    meter = Meter(engine.device)
    for batch in meter.waiting_for(global_batches(run)):
        losses, norms = one_step(run, batch, meter)
        if state.skipped_in_a_row > config.nonfinite.max_in_a_row:
            give_up(run, too_many(run, losses, norms))
            return
        if config.data.valid_split is not None and run.is_due(config.evaluation.evaluate_every):
            settle(run)
            evaluate_and_judge(run)
            meter.restart()
        if state.best_step == state.step or run.ends_phase or run.is_due(config.checkpoint.save_every):
            save(run)
            meter.restart()
        if run.is_finished:
            break
    settle(run)
    run.log.stop_progress()
    if run.is_finished:
        best = (
            ""
            if state.best_score is None
            else f"; best {run.task.best_score} {state.best_score:.4f} at step {state.best_step}"
        )
        run.log.say(f"done: {state.step} steps{best}; checkpoints in {run.checkpoints.root}", is_result=True)
        run.faults.say_what_is_left()
    else:
        next_phase(run)


def one_step(run: Run, batch: Step, meter: Meter) -> tuple[StepLosses, Tensor]:
    """One step with all that is said about it, or, if all ranks agree to stop, none (Stopped). Returns as `take_step`."""
    state = run.state
    if run.faults.waiting:
        run.faults.before_step(state.step + 1, run.engine.bare_model())
    agreed = agree(run, batch)
    if agreed.is_saved:
        settle(run)
    if agreed.stop is not None:
        leave(run, agreed.stop)
    losses, norms = advance(run, batch, agreed.rows)
    run.engine.whereabouts.begin("logging")
    run.log.ledger.took(step_taken(run, batch, agreed, losses, norms))
    meter.count(sum(agreed.rows))
    is_logged = run.is_due(run.config.log.log_every) and not state.skipped_in_a_row
    run.log.progress(state.step, log_step(run, batch.epoch, losses, norms, meter) if is_logged else None)
    return losses, norms


def give_up(run: Run, failure: CheckFailed) -> None:
    """Too many steps in a row were not finite: ends the run with the failure, or goes back, as the configuration says."""
    settle(run)
    run.log.stop_progress()
    if run.config.nonfinite.then == "stop":
        raise failure
    roll_back(run, failure)


def step_taken(run: Run, batch: Step, agreed: Agreement, losses: StepLosses, norms: Tensor) -> StepTaken:
    """What the ledger keeps of the step just taken."""
    return StepTaken(run.state.step, run.order.rows(batch.step), sum(agreed.rows), losses.losses, total_norm(norms))


def save(run: Run) -> None:
    run.engine.whereabouts.begin("writing a checkpoint")
    with run.stop.saving():
        run.checkpoints.save(run.state, about_run(run.config, run.dataset.fingerprint, run.plan))


def settle(run: Run) -> None:
    """Gives the checkpoint that is being written in the background, if there is one, its name; waits if it must."""
    run.checkpoints.settle()
    run.stop.saves_take(run.checkpoints.seconds_to_leave)


def leave(run: Run, why: str) -> NoReturn:
    """Between two steps, on all ranks: a checkpoint of the steps taken, and out (Stopped)."""
    save(run)
    settle(run)
    run.stop.remove_file()
    raise Stopped(
        f"stopped by {why} at step {run.state.step} of {run.total_steps}; a checkpoint was written, and the same command "
        "goes on from it."
    )


def say_nothing_to_do(run: Run) -> None:
    """For a run that was at its end when it was started."""
    why = "is complete" if run.state.step >= run.total_steps else "stopped early"
    run.log.say(
        f"{run.config.run_dir} {why}: {run.state.step} of {run.total_steps} steps. Nothing to do.", is_result=True
    )


def global_batches(run: Run) -> Generator[Step]:
    """This rank's share of every global batch from the present step to the end of its phase."""
    steps = train_steps(
        run.faults.on_rows_of(run.dataset),
        run.order,
        run.config.data,
        rank=run.engine.rank,
        world_size=run.engine.world_size,
        first_step=run.state.step,
        last_step=run.phase.end,
        seed=run.config.seed,
        pin_memory=run.engine.device.type == "cuda",
    )
    while True:
        run.engine.whereabouts.begin("waiting for data")
        try:
            step = next(steps, None)
        except (UserError, CheckFailed, OSError) as failure:
            share_failure(run, failure)
        if step is None:
            return
        run.engine.whereabouts.begin("agreeing on a step")
        yield step


def advance(run: Run, batch: Step, counts: list[int]) -> tuple[StepLosses, Tensor]:
    """One step further. `counts` are the ranks' rows of this batch; returns what `take_step` does."""
    set_learning_rates(run)
    losses, norms = take_step(run, batch, counts)
    run.state.step = run.engine.whereabouts.step = run.state.step + 1
    run.state.samples += 0 if run.state.skipped_in_a_row else sum(counts)
    return losses, norms


def set_learning_rates(run: Run) -> None:
    """Writes base_lr x scale(step) into every group; for a while after a rollback, less."""
    scale = run.phase.lr_scale(run.state.step) * lr_reduction(run.state.step, run.state.rollbacks)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale


def take_step(run: Run, batch: Step, counts: list[int]) -> tuple[StepLosses, Tensor]:
    """Gradients, clipping and update. Returns the losses and every group's gradient norm before clipping.

    If one of them is not finite, weights, optimizer state and buffers are afterwards what they were before.
    """
    buffers = run.engine.moving_buffers()
    before = [buffer.clone() for buffer in buffers]
    losses, norms = find_gradients(run, batch, counts)
    run.checkpoints.wait_for_copy()
    run.faults.at("update", run.state.step + 1)
    if all_finite(losses, norms):
        run.state.skipped_in_a_row = 0
        update(run, norms)
    else:
        pass_over(run, batch, counts, losses, norms)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return losses, norms


def log_step(run: Run, epoch: int, losses: StepLosses, norms: Tensor, meter: Meter) -> str:
    """Writes one line of metrics and returns it in words."""
    values = {"epoch": float(epoch), "loss": sum(float(value) for value in losses.losses.values())}
    values |= {f"loss/{name}": float(value) for name, value in losses.losses.items()}
    values |= {name: float(value) for name, value in run.task.train_metrics(losses.outputs()).items()}
    values["grad_norm"] = total_norm(norms)
    for group, norm in zip(run.engine.optimizer.param_groups, norms.tolist(), strict=True):
        values[f"lr/{group['name']}"] = group["lr"]
        values[f"grad_norm/{group['name']}"] = norm
    if run.config.precision == "fp16":
        values["loss_scale"] = run.state.loss_scale
    values |= meter.read() | run.checkpoints.new_seconds()
    run.log.metrics(run.state.step, "train", values)
    watch_step(run, values["loss"], values["grad_norm"])
    run.engine.track({f"train/{name}": value for name, value in values.items()}, run.state.step)
    return step_summary(run.state.step, run.total_steps, epoch, values)
