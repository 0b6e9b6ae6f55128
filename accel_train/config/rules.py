"""Rules that join several keys. A value that would be ignored or contradicted is an error, never a silent choice.

A key that only some choices use may stand there with its default value, as it does in a configuration written back by
`dump_config`; any other value beside another choice is an error.
"""

import re
from collections.abc import Iterator

from accel_train.config.schema import (
    DataSection,
    EvaluationSection,
    OptimizerSection,
    RunConfig,
    ScheduleSection,
    Tower,
    TowerChange,
    changed_keys,
    exactly_one,
    optimizer_of_phase,
)
from accel_train.errors import UserError

ONE_GRAPH_ENGINES = ("zero3", "fsdp2")
"""Engines that allow no other forward pass between a graph and its backward pass."""


def check_rules(config: RunConfig) -> list[str]:
    """One line for each contradiction, naming the keys, their values, and what to change."""
    return [
        *_length(config),
        *_data(config.data),
        *_optimizer(config.optimizer),
        *_phases(config),
        *_schedule(config),
        *_evaluation(config.evaluation, config.data),
        *_checkpoint(config),
        *_nonfinite(config),
        *_engine(config),
        *config.contradictions(),
    ]


def _length(config: RunConfig) -> Iterator[str]:
    yield from exactly_one("", config, "max_steps", "num_epochs")
    if not config.run_dir.strip():
        yield f"run_dir: found {config.run_dir!r}; it must name a folder."
    if config.initialize_optimizer and config.initialize_from is None:
        yield "initialize_optimizer: true would be ignored, since initialize_from is null. Name a run or a checkpoint there."


def _data(data: DataSection) -> Iterator[str]:
    if data.micro_batch_size > data.global_batch_size:
        yield (
            f"data.micro_batch_size: {data.micro_batch_size} is more than data.global_batch_size "
            f"({data.global_batch_size}); a micro-batch is a part of the global batch. Set it to at most that."
        )
    for key in ("path", "train_split"):
        if not getattr(data, key).strip():
            yield f"data.{key}: found {getattr(data, key)!r}; it must not be empty."


def _optimizer(optimizer: OptimizerSection) -> Iterator[str]:
    unused = {"adamw": ["momentum"], "adam": ["momentum"], "lion": ["momentum", "eps"], "sgd": ["betas", "eps"]}
    for key in changed_keys(optimizer, *unused[optimizer.name]):
        value = getattr(optimizer, key)
        yield f"optimizer.{key}: {value} would be ignored, since optimizer.name is {optimizer.name}. Take it out."
    names = [tower.name for tower in optimizer.towers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"optimizer.towers: {names.count(name)} towers are named {name!r}; names must differ."
    if all(tower.lr == 0 for tower in optimizer.towers):
        yield "optimizer.towers: every tower has lr 0, so nothing would be trained. Give at least one a learning rate."
    for tower in optimizer.towers:
        yield from _frozen_tower(f"optimizer.towers.{tower.name}", tower)
        patterns = [tower.layers] if isinstance(tower.layers, str) else tower.layers
        if not patterns:
            yield f"optimizer.towers.{tower.name}.layers: found []; give a named layer list or at least one pattern."
        yield from _patterns(f"optimizer.towers.{tower.name}.layers", patterns)
    yield from _patterns("optimizer.no_decay_layers", optimizer.no_decay_layers)


def _frozen_tower(where: str, tower: Tower) -> Iterator[str]:
    if tower.lr == 0 and tower.train_last is not None:
        yield (
            f"{where}.train_last: {tower.train_last} contradicts lr 0, which freezes the whole tower. Set train_last to "
            "null or give a learning rate."
        )


def _phases(config: RunConfig) -> Iterator[str]:
    names = [phase.name for phase in config.phases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"phases: {names.count(name)} phases are named {name!r}; names must differ."
    optimizer = config.optimizer
    for phase in config.phases:
        where = f"phases.{phase.name}"
        if not phase.towers and phase.schedule is None:
            yield f"{where}: it changes neither towers nor schedule. Give it one of them, or take it out."
        known = [tower.name for tower in optimizer.towers]
        changed = [change.name for change in phase.towers]
        for change in phase.towers:
            if change.name not in known:
                yield f"{where}.towers: no tower is named {change.name!r}; optimizer.towers has {', '.join(known)}."
            elif changed.count(change.name) > 1:
                yield f"{where}.towers: {change.name} stands there {changed.count(change.name)} times; name it once."
            elif not changed_keys(change, *(key for key in TowerChange.model_fields if key != "name")):
                yield f"{where}.towers.{change.name}: nothing is changed. Give a key, or take it out."
        optimizer = optimizer_of_phase(optimizer, phase)
        for tower in optimizer.towers:
            if tower.name in changed:
                yield from _frozen_tower(f"{where}.towers.{tower.name}", tower)
        if all(tower.lr == 0 for tower in optimizer.towers):
            yield f"{where}.towers: every tower has lr 0, so nothing would be trained."
        if phase.schedule is not None:
            yield from _schedule_keys(f"{where}.schedule", phase.schedule)


def _patterns(where: str, patterns: list[str]) -> Iterator[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield f"{where}: found {pattern!r}; it must be a regular expression, but {error}."


def _schedule(config: RunConfig) -> Iterator[str]:
    schedule = config.schedule
    yield from _schedule_keys("schedule", schedule)
    if config.max_steps is not None and (schedule.warmup_steps or 0) > config.max_steps:
        yield (
            f"schedule.warmup_steps: {schedule.warmup_steps} is more than max_steps ({config.max_steps}), so the "
            "learning rate would never be reached. Lower it, or set warmup_ratio instead."
        )


def _schedule_keys(where: str, schedule: ScheduleSection) -> Iterator[str]:
    if schedule.warmup_steps is not None and schedule.warmup_ratio is not None:
        yield (
            f"{where}.warmup_steps: warmup_steps is {schedule.warmup_steps} and {where}.warmup_ratio is "
            f"{schedule.warmup_ratio:g}; give at most one of them and set the other to null."
        )
    if schedule.name == "constant" and schedule.min_lr_ratio != 0:
        yield f"{where}.min_lr_ratio: {schedule.min_lr_ratio:g} would be ignored, since {where}.name is constant."
    for name, keys in (("step", ["step_every", "step_factor"]), ("cyclic", ["cycle_length"])):
        yield from _only_with(where, schedule, name, keys)


def _only_with(where: str, schedule: ScheduleSection, name: str, keys: list[str]) -> Iterator[str]:
    for key in keys:
        value = getattr(schedule, key)
        if schedule.name == name and value is None:
            yield f"{where}.{key}: missing, but {where}.name is {name}, which needs it."
        elif schedule.name != name and value is not None:
            yield f"{where}.{key}: {value!r} would be ignored, since {where}.name is {schedule.name}, not {name}."


def _evaluation(evaluation: EvaluationSection, data: DataSection) -> Iterator[str]:
    if data.valid_split is None:
        for key in changed_keys(evaluation, "evaluate_every", "batch_size", "best_score", "early_stopping"):
            value = getattr(evaluation, key)
            yield f"evaluation.{key}: {value!r} would be ignored, since data.valid_split is null. Name a split there."
    elif evaluation.early_stopping is not None and evaluation.evaluate_every is None:
        yield (
            "evaluation.early_stopping: it counts evaluations, but evaluation.evaluate_every is null. Give an "
            "interval, for example '1 epoch'."
        )


def _checkpoint(config: RunConfig) -> Iterator[str]:
    judged = config.data.valid_split is not None and config.evaluation.evaluate_every is not None
    if config.checkpoint.in_background and config.checkpoint.save_every is None and not judged:
        yield (
            "checkpoint.in_background: true would be ignored: save_every is null and no evaluation finds a best checkpoint, "
            "so nothing is saved while the run trains. Give checkpoint.save_every an interval."
        )


def _nonfinite(config: RunConfig) -> Iterator[str]:
    nonfinite = config.nonfinite
    if nonfinite.then == "stop":
        for key in changed_keys(nonfinite, "lr_factor", "lr_window", "max_rollbacks"):
            value = getattr(nonfinite, key)
            yield f"nonfinite.{key}: {value!r} would be ignored, since nonfinite.then is stop, not rollback."
    elif config.checkpoint.save_every is None:
        yield (
            "nonfinite.then: rollback goes back to a checkpoint, but checkpoint.save_every is null. Give an interval, for "
            "example '1000 steps'."
        )


def _engine(config: RunConfig) -> Iterator[str]:
    if config.zero.offload_optimizer and config.engine in ("ddp", "fsdp2"):
        yield f"zero.offload_optimizer: true would be ignored by engine {config.engine}. Use zero1, zero2 or zero3."


def check_kept_graphs(config: RunConfig, *, engine: str, compares_whole_batch: bool) -> None:
    """Raises UserError where compute.kept_graphs could not be followed."""
    kept = config.compute.kept_graphs
    if kept == 1:
        return
    why = None
    if not compares_whole_batch:
        why = "would be ignored: the loss adds up over micro-batches, so none is encoded twice"
    elif engine in ONE_GRAPH_ENGINES:
        why = f"can't be followed: {engine} allows no other forward pass between a graph and its backward pass"
    elif config.compute.activation_checkpointing:
        why = "contradicts compute.activation_checkpointing, which computes activations again instead of keeping them"
    if why:
        raise UserError(f"compute.kept_graphs: {kept} {why}. Set it to 1.")


def num_micro_batches(config: RunConfig, world_size: int) -> int:
    """Micro-batches of one rank in one step: global_batch_size / (micro_batch_size x ranks).

    Raises UserError, with the sizes that would do, if that is not a whole number.
    """
    whole, micro = config.data.global_batch_size, config.data.micro_batch_size
    at_once = micro * world_size
    if whole % at_once == 0:
        return whole // at_once
    below, above = whole // at_once * at_once, -(-whole // at_once) * at_once
    sizes = f"{below} or {above}" if below else f"{above}"
    fitting = [size for size in range(1, micro) if whole % (size * world_size) == 0]
    remedy = f", or set micro_batch_size={fitting[-1]}" if fitting else ""
    raise UserError(
        f"data.global_batch_size is {whole}, but micro_batch_size × ranks = {micro} × {world_size} = {at_once} "
        f"does not divide it. Use {sizes}{remedy}.",
        code="AT110",
    )


def check_last_batch(config: RunConfig, num_samples: int, world_size: int) -> None:
    """Raises UserError if an epoch of `num_samples` has no step, or one with fewer samples than ranks."""
    whole = config.data.global_batch_size
    left_over = num_samples % whole
    if config.data.last_batch == "drop":
        if num_samples < whole:
            raise UserError(
                f"data.global_batch_size is {whole}, but the training split has {num_samples} samples: with last_batch "
                "drop, an epoch has no step. Use a smaller batch.",
                code="AT111",
            )
    elif 0 < left_over < world_size:
        raise UserError(
            f"data.last_batch is keep, but an epoch of {num_samples} samples leaves {left_over} for the last "
            f"batch after {num_samples // whole} of {whole}, fewer than the {world_size} ranks. Use last_batch: drop, "
            "another global_batch_size, or fewer ranks.",
            code="AT111",
        )
