"""Builds everything a run needs and brings it to where training goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from accel_train.checkpoint.folders import folder_name
from accel_train.checkpoint.rollbacks import ROLLBACKS_FILE, is_abandoned, read_rollbacks
from accel_train.checkpoint.state import TrainState, state_of
from accel_train.checkpoint.store import Checkpoints
from accel_train.config.faults import Fault, check_faults
from accel_train.config.load import dump_config, leaves
from accel_train.config.rules import check_kept_graphs, check_last_batch, num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.order import Order
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.inject import Faults, fired_faults
from accel_train.models.blocks import checkpoint_activations, compile_blocks, repeated_blocks
from accel_train.models.dropout import install_per_sample_dropout
from accel_train.models.pretrained import quiet_transformers
from accel_train.optim.group_table import group_table
from accel_train.optim.groups_file import write_groups
from accel_train.optim.lr_scaling import scaling_in_words
from accel_train.optim.optimizers import make_optimizer, state_names
from accel_train.optim.param_groups import GroupPlan, freeze, set_train_mode
from accel_train.phases import phase_at, plan_phase_groups, plan_phases
from accel_train.randomness import seed_everything
from accel_train.resume import about_launch, carried_state, check_resumable, load_initial_weights
from accel_train.run import Run
from accel_train.run_log import METRICS_FILE, RunLog
from accel_train.stopping import StopRequest
from accel_train.tasks.build import build_task
from accel_train.tasks.contract import check_dataset
from accel_train.tasks.task import Task
from accel_train.watch import watch_start

FIRST_LOSS_SCALE = 2.0**16


def set_up(
    config: RunConfig, engine: Engine, log: RunLog, stop: StopRequest, *, fresh: bool, inject: tuple[Fault, ...] = ()
) -> Run:
    """A run that is ready for its next step. Raises UserError on every rank.

    Weights come from the first of these that is there: this run's newest valid checkpoint, `initialize_from`, the pretrained
    folders of the model, the seed.
    """
    micro_batches = num_micro_batches(config, engine.world_size)
    log.say(_engine_in_words(config, engine, micro_batches))
    if scaling := scaling_in_words(config.optimizer, config.data.global_batch_size):
        log.say(f"optimizer.lr_scaling: {scaling}")
    task, model = engine.together(lambda: build_model(config))
    check_kept_graphs(config, engine=engine.launch.engine, compares_whole_batch=task.compares_whole_batch)
    dataset, order = engine.together(lambda: build_data(config, task, engine.world_size))
    for line in engine.together(lambda: task.prepare_training(engine.device)):
        log.say(line)
    total_steps = config.max_steps or (config.num_epochs or 0) * order.steps_per_epoch
    phases = plan_phases(config, steps_per_epoch=order.steps_per_epoch, total_steps=total_steps)
    faults = prepare_faults(inject, config, engine, log, total_steps=total_steps, num_rows=len(dataset))
    checkpoints = Checkpoints(
        Path(config.run_dir),
        engine,
        log,
        keep_last=config.checkpoint.keep_last,
        state_names=state_names(config.optimizer),
        in_background=config.checkpoint.in_background,
        faults=faults,
    )
    resumed = find_resumable(config, engine, checkpoints, fresh=fresh)
    state, carried = TrainState(), None
    if resumed:
        check_resumable(resumed[1]["about"], config, dataset.fingerprint, log)
        state = state_of(resumed[1])
    elif (source := config.initialize_from) is not None:
        engine.together(lambda: load_initial_weights(task, model, source, log))
        if config.initialize_optimizer:
            carried = engine.together(lambda: carried_state(config, task, model))
            state.carried_updates = carried.updates
    splits = [split for split in (config.data.train_split, config.data.valid_split) if split is not None]
    for line in engine.together(lambda: task.check_splits(None if resumed else model, splits)):
        log.say(line)
    for note in () if resumed else task.notes(model):
        log.say(note)
    phase = phase_at(phases, state.step)
    plan = engine.together(lambda: plan_phase_groups(model, phases, phase, state.carried_updates))
    run = Run(
        config, engine, task, phases, order, dataset, log, checkpoints, total_steps, stop, faults, phase, plan, state
    )
    start_phase(run, model, resumed[0] if resumed else None)
    if carried:
        checkpoints.carry(carried, run.plan)
        log.say(carried_summary(run.plan, config))
    if resumed:
        log.say(f"resuming from {resumed[0]} at step {state.step} of {total_steps}")
    saved_precision = resumed[1]["about"]["config"]["precision"] if resumed else None
    if config.precision != saved_precision:
        run.state.loss_scale = FIRST_LOSS_SCALE if config.precision == "fp16" else 1.0
    faults.at("start", run.state.step)
    log.rewind(run.state.step if resumed else -1)
    if not run.is_finished:
        log.ledger.launched(run.state.step, about_launch(config, engine))
    engine.together(lambda: write_config(run))
    engine.together(lambda: leave_groups(run))
    engine.start_trackers({path: str(value) for path, value in leaves(config.model_dump()).items()})
    return run


def _engine_in_words(config: RunConfig, engine: Engine, micro_batches: int) -> str:
    ranks = f"{engine.world_size} rank{'s' * (engine.world_size != 1)}"
    return (
        f"engine {engine.launch.engine} ({type(engine).__name__}) on {engine.world_size} x {engine.device.type}, "
        f"{config.precision}; a global batch of {config.data.global_batch_size} is {ranks} x "
        f"{micro_batches} micro-batch{'es' * (micro_batches != 1)} of {config.data.micro_batch_size}"
    )


def find_resumable(
    config: RunConfig, engine: Engine, checkpoints: Checkpoints, *, fresh: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that the run goes on from, and its state.json with every rollback of the run. Raises UserError."""
    rollbacks = engine.together(lambda: read_rollbacks(Path(config.run_dir)))
    found = checkpoints.newest_valid(lambda saved: not is_abandoned(saved, rollbacks))
    if fresh and engine.gather_objects(bool(found) or (Path(config.run_dir) / METRICS_FILE).exists())[0]:
        raise UserError(
            f"run_dir: {config.run_dir} holds a run and --fresh was given; nothing is overwritten. Choose another run_dir.",
            code="AT301",
        )
    if found is None and rollbacks:
        raise UserError(
            f"{config.run_dir} went back to the checkpoint of step {rollbacks[-1].to} ({ROLLBACKS_FILE}), which is not "
            "there any more. Restore it, or choose another run_dir."
        )
    if found:
        found[1]["rollbacks"] = max(found[1]["rollbacks"], [asdict(rollback) for rollback in rollbacks], key=len)
    return found


def prepare_faults(
    wanted: tuple[Fault, ...], config: RunConfig, engine: Engine, log: RunLog, *, total_steps: int, num_rows: int
) -> Faults:
    """What `--inject` asks for, less what has fired in this run directory before. Raises UserError on every rank."""
    check_faults(
        wanted,
        world_size=engine.world_size,
        total_steps=total_steps,
        num_rows=num_rows,
        num_workers=config.data.num_workers,
    )
    fired = engine.gather_objects(fired_faults(Path(config.run_dir)))[0] if wanted else frozenset()
    return Faults(wanted, rank=engine.rank, log=log, fired=fired)


def next_phase(run: Run) -> None:
    """Builds the run anew for the phase that begins at this step, from the checkpoint that the last phase left here."""
    run.log.say(f"phase {phase_at(run.phases, run.state.step).name} begins at step {run.state.step}")
    rebuild(run, run.checkpoints.root / folder_name(run.state.step))


def rebuild(run: Run, checkpoint: Path) -> None:
    """Puts a fresh model and optimizer into the engine, with what a checkpoint of the run's present step holds."""
    run.engine.release()
    _, model = run.engine.together(lambda: build_model(run.config))
    run.phase = phase_at(run.phases, run.state.step)
    run.plan = plan_phase_groups(model, run.phases, run.phase, run.state.carried_updates)
    run.faults.at("phase", run.state.step)
    start_phase(run, model, checkpoint)
    run.engine.together(lambda: leave_groups(run))


def start_phase(run: Run, model: nn.Module, checkpoint: Path | None) -> None:
    """Puts a whole model into the engine for the run's present phase, and the checkpoint's values into both."""
    freeze(model, run.plan)
    run.log.show(group_table(run.plan, max_rows=30))
    prepare(run.engine, model, run.plan, run.config)
    run.engine.whereabouts.step = run.state.step
    if checkpoint is not None:
        run.engine.whereabouts.begin("reading a checkpoint")
        run.checkpoints.load(checkpoint, run.state, run.plan)
    watch_start(run)


def build_model(config: RunConfig) -> tuple[Task, nn.Module]:
    """The task and its whole model with the starting weights."""
    quiet_transformers()
    task = build_task(config)
    seed_everything(config.seed)
    return task, task.build_model()


def build_data(config: RunConfig, task: Task, world_size: int) -> tuple[Dataset, Order]:
    """Training data and its order; opens the validation split too, so that it fails here if it does."""
    dataset = task.build_dataset(config.data.train_split)
    check_dataset(task, dataset, config.data.train_split)
    if config.data.valid_split is not None:
        task.evaluation_sets(config.data.valid_split)
    check_last_batch(config, len(dataset), world_size)
    order = Order(
        len(dataset),
        config.data.global_batch_size,
        seed=config.seed,
        shuffle=config.data.shuffle,
        last_batch=config.data.last_batch,
        buckets=task.buckets(dataset),
    )
    return dataset, order


def prepare(engine: Engine, model: nn.Module, plan: GroupPlan, config: RunConfig) -> None:
    """Puts a model whose groups are planned into the engine, with its optimizer."""
    if config.dropout == "per_sample":
        install_per_sample_dropout(model)
    if config.compute.activation_checkpointing:
        checkpoint_activations(model)
    block_classes = {type(block).__name__ for _, block in repeated_blocks(model)}
    optimizer = make_optimizer(model, plan, config.optimizer, fused=engine.can_fuse(config.optimizer.name))
    engine.prepare(model, optimizer, precision=config.precision, block_classes=block_classes)
    if config.compute.compile:
        compile_blocks(engine.bare_model())
    set_train_mode(engine.bare_model())


def carried_summary(plan: GroupPlan, config: RunConfig) -> str:
    """How much of what trains goes on with optimizer state from elsewhere."""
    with_state = [group for group in plan.groups if group.first_step < 0]
    num_with, num_all = (sum(len(group.param_names) for group in groups) for groups in (with_state, plan.groups))
    updates = max((-group.first_step for group in with_state), default=0)
    return (
        f"optimizer state from {config.initialize_from} ({updates} updates) for {num_with} of {num_all} parameters; the "
        "rest begins with none"
    )


def write_config(run: Run) -> None:
    """Leaves the resolved configuration in the run's folder, whole at any moment."""
    if run.engine.is_main:
        path = Path(run.config.run_dir) / "config.yaml"
        aside = path.with_suffix(".new")
        aside.write_text(dump_config(run.config), encoding="utf-8")
        aside.replace(path)


def leave_groups(run: Run) -> None:
    """Leaves the groups of the present phase in the run's folder, beside those of the phases before it."""
    if run.engine.is_main:
        write_groups(Path(run.config.run_dir), run.phase.name, run.phase.start, run.plan)
